"""What the files of cluster/ say: their commands, as a shell would split them, and their YAML."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "cluster"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
RAY_UP = ("aws.yaml", "gcp.yaml", "machines.yaml")
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")
# Where the image has the configs; a checkout has them in its own folder.
IMAGE_CONFIGS = "/opt/csr_ray/configs/"


def name_of(path: Path) -> str:
    return path.name


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def read_yaml(name: str) -> dict[str, Any]:
    tree = yaml.safe_load(read(name))
    assert isinstance(tree, dict)
    return tree


def lines_of(path: Path) -> list[str]:
    """The lines of a file without the marks of comments and of inline code; a command on several lines is one."""
    text = path.read_text(encoding="utf-8")
    if path.name == "rayjob.yaml":  # its command is folded by YAML itself
        text = yaml.safe_dump(yaml.safe_load(text), width=10_000)
    text = re.sub(r"\\\n[ \t]*#?[ \t]*", "", text)
    return [line.strip().removeprefix("#").strip() for line in re.split(r"[\n`]", text)]


def run_commands(path: Path) -> list[list[str]]:
    """The arguments of each `csr-ray run CONFIG ...` in a file; sbatch gives slurm.sh the same."""
    starts = re.compile(r"(?:csr-ray run|csr_ray run|cluster/slurm\.sh) ((?:\S*/)?configs/\S+\.yaml.*)")
    found = (starts.search(line) for line in lines_of(path))
    texts = [match[1].replace(IMAGE_CONFIGS, "configs/") for match in found if match]
    # One that is a single word of another command ends with the quote that it began with.
    texts = [text.rpartition("'")[0] if text.count("'") % 2 else text for text in texts]
    return [shlex.split(text, comments=True) for text in texts]


def ray_commands(path: Path) -> list[list[str]]:
    """The words behind each `ray` that is called; a command's bare name, as in a sentence, is no call."""
    starts = re.compile(
        r"(?:^|[&|;(] *|bash, -c, |- )ray ((?:start|stop|up|down|dashboard|exec|job|status|attach)\b.*)"
    )
    found = (starts.search(line) for line in lines_of(path))
    lines = [re.split(r" ?[&>|]", match[1])[0] for match in found if match]
    calls = [shlex.split(line, comments=True) for line in lines]
    return [words for words in calls if len(words) > 1 or (words == ["stop"] and path.suffix == ".yaml")]
