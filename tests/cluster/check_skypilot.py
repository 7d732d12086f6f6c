"""Has SkyPilot's own parsers read cluster/skypilot.yaml and the `sky` commands of cluster/README.md.

`make check-cluster` runs it in an environment of its own, because SkyPilot wants other versions than csr_ray does. No
cloud is asked: what a cloud would refuse, such as an image or a machine that it does not have, is not seen here.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import click
import sky
import yaml
from sky.client.cli import command as sky_cli

FOLDER = Path(__file__).resolve().parents[2] / "cluster"


def check_task() -> None:
    text = (FOLDER / "skypilot.yaml").read_text(encoding="utf-8")
    secrets = [("HF_TOKEN", "from-the-shell")]
    task = sky.Task.from_yaml_config(yaml.safe_load(text), secrets_overrides=secrets)
    assert {resources.use_spot for resources in task.resources} == {True, False}, "on-demand where there is no spot"
    assert all(list(resources.accelerators.values()) == [8] for resources in task.resources)
    assert all(resources.job_recovery["strategy"] == "EAGER_NEXT_REGION" for resources in task.resources)
    try:
        sky.Task.from_yaml_config({**yaml.safe_load(text), "resource": {}}, secrets_overrides=secrets)
    except sky.exceptions.InvalidSkyPilotConfigError:
        return
    raise AssertionError("a wrong key was taken")


def check_commands() -> int:
    """Returns how many commands there are."""
    os.environ["HF_TOKEN"] = "from-the-shell"  # `--secret HF_TOKEN` takes it from there
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = re.findall(r"(?:^|`)sky ([^\n`]+)", text, re.M)
    for command in commands:
        place: click.Command = sky_cli.cli
        words = shlex.split(command, comments=True)
        while isinstance(place, click.Group):
            place = place.commands[words.pop(0)]
        place.make_context(place.name, words)
    return len(commands)


def main() -> int:
    check_task()
    num = check_commands()
    assert num >= 4, num
    print(f"SkyPilot {sky.__version__} takes cluster/skypilot.yaml and the {num} sky commands of cluster/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
