"""Whoever follows cluster/README.md from nothing gets a run: first one that needs no data, then one with data."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
from cluster_files import FILES, ROOT, name_of, read, read_yaml, run_commands

from csr_ray.__main__ import _parser
from csr_ray.cli.order import parse
from csr_ray.config.load import load_config

KUBERNETES = "1.37"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_run_names_its_prompts_and_its_pictures(path: Path) -> None:
    """A config's own are relative names of files that nobody has: such a command would end with exit code 2."""
    for command in run_commands(path):
        arguments = parse(_parser(), ["run", *command])
        config = load_config(ROOT / arguments.config, overrides=arguments.overrides)
        if not config.world.enabled:
            assert config.data.prompts.startswith("/"), (command, config.data.prompts)
            assert str(config.data.images).startswith("/"), (command, config.data.images)


SECTIONS = ("ray up", "Kubernetes", "Slurm", "SkyPilot")


def section(title: str) -> str:
    return read("README.md").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_first_run_of_a_section_needs_no_data(title: str, tmp_path: Path) -> None:
    (tmp_path / "section.md").write_text(section(title), encoding="utf-8")
    first = run_commands(tmp_path / "section.md")[0]
    config = load_config(ROOT / first[0], overrides=first[1:])
    assert config.world.enabled
    # The engine in the image, and where `make install` found a GPU, serves on GPUs only.
    assert config.generators.gpus > 0 and config.train.gpus_per_worker > 0
    assert config.generators.gpus + config.scorers.gpus + config.train.gpus_per_worker <= 1, "one GPU does it"


@pytest.mark.parametrize("title", SECTIONS)
def test_the_world_of_a_first_run_is_where_all_nodes_see_it(title: str) -> None:
    assert title == "SkyPilot" or "CSR_RAY_CACHE=/shared/" in section(title)


def test_the_shell_that_sees_the_volume_is_a_pod_that_kubernetes_takes() -> None:
    (overrides,) = re.findall(r"--overrides='\s*(\{.*?\})'", section("Kubernetes"), re.S)
    pod = {"kind": "Pod", "metadata": {"name": "csr-ray-data"}, **json.loads(overrides)}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    (volume,) = pod["spec"]["volumes"]
    claim = read_yaml("rayjob-volume.yaml")["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_leads_to_the_data(title: str) -> None:
    assert "(#prompts-and-pictures)" in section(title)


def test_the_readme_says_where_the_data_come_from_and_names_pictures_as_the_prompts_do() -> None:
    text = section("Prompts and pictures")
    assert "https://github.com/YiyangZhou/CSR" in text and "http://images.cocodataset.org/zips/train2014.zip" in text
    # The prompts say 000000442786.jpg, COCO's archive COCO_train2014_000000442786.jpg; no row would have its picture.
    (script,) = re.findall(r"```bash\n(.*?)```", text, re.S)
    assert "COCO_train2014_" in script


def test_what_renames_the_pictures_does(tmp_path: Path) -> None:
    (script,) = re.findall(r"```bash\n(.*?)```", section("Prompts and pictures"), re.S)
    (loop,) = re.findall(r"^for .*?^done$", script, re.S | re.M)
    folder = tmp_path / "train2014"
    folder.mkdir()
    for name in ("COCO_train2014_000000442786.jpg", "000000539056.jpg"):
        (folder / name).touch()
    subprocess.run(["bash", "-euc", loop], cwd=tmp_path, check=True)
    assert {path.name for path in folder.iterdir()} == {"000000442786.jpg", "000000539056.jpg"}
