"""What a node is told that is not fit for what is to run on it, and what it is asked at all."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from actors.cluster.nodes import part_of, skew_s
from actors.process import fitness
from actors.process.fitness import Look, Part, Wanted, check_this_node, faults, look, refuse
from csr_ray.data.files import UnreadableError
from csr_ray.errors import ConfigError
from csr_ray.machine.placement import Demand

VERSIONS = {
    "python": "3.11",
    "csr_ray": "0.1.0",
    "ray": "2.60.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.19.0",
    "vllm": "0.32.0",
    "trl": "1.16.0",
    "peft": "0.21.2",
    "deepspeed": "0.19.8",
    "open_clip_torch": "3.3.0",
}
WANTED = Wanted(
    policy="/models/llava",
    policy_files={},
    scorer="/models/clip",
    scorer_folder="/models/clip",
    scorer_files={},
    picture="",
    picture_bytes=0,
    archives={},
    versions=VERSIONS,
)
SEEN = Look(
    versions=VERSIONS,
    policy="",
    scorer="",
    picture="",
    archive="",
    temporary="",
    has_models=True,
    num_gpus=None,
    free_bytes=2**40,
    at_s=0.0,
)
ALL = frozenset({"generator", "scorer", "train worker"})


def _without(name: str) -> dict[str, str]:
    return {other: version for other, version in VERSIONS.items() if other != name}


@pytest.mark.parametrize(
    ("roles", "num_gpus", "seen", "skew", "says"),
    [
        (ALL, 0, {}, 0, []),
        (ALL, 0, {"versions": VERSIONS | {"torch": "2.13.0+cu130"}}, 0, []),  # a node with GPUs has another build
        (
            ALL,
            0,
            {"versions": VERSIONS | {"transformers": "5.18.0"}},
            0,
            ["it has transformers 5.18.0, and the driver's node 5.19.0; install one version on all nodes"],
        ),
        ({"scorer"}, 0, {"versions": VERSIONS | {"transformers": "5.18.0"}}, 0, []),  # nobody needs it there
        ({"scorer"}, 0, {"versions": _without("vllm")}, 0, []),
        ({"generator"}, 0, {"versions": _without("vllm")}, 0, ["vllm is not installed there; install vllm 0.32.0"]),
        ({"train worker"}, 0, {"versions": _without("trl")}, 0, ["trl is not installed there"]),
        ({"scorer"}, 0, {"versions": _without("open_clip_torch")}, 0, ["open_clip_torch is not installed there"]),
        ((), 0, {"versions": VERSIONS | {"python": "3.12"}}, 0, ["it has python 3.12, and the driver's node 3.11"]),
        ((), 0, {"versions": {"python": "3.11", "ray": "2.60.0", "csr_ray": "0.2.0"}}, 0, ["it has csr_ray 0.2.0"]),
        ((), 0, {"versions": {"python": "3.11", "ray": "2.60.0", "csr_ray": "0.1.0"}}, 0, []),  # a head of 0 CPUs
        (ALL, 0, {}, 59, []),
        (ALL, 0, {}, 95, ["its clock is 95 s ahead of the driver's; let both keep time by NTP"]),
        ((), 0, {}, -3600, ["its clock is 3600 s behind the driver's; let both keep time by NTP"]),
        (ALL, 2, {"num_gpus": 2}, 0, []),
        (ALL, 2, {"num_gpus": 0}, 0, ["Ray gives away 2 GPUs there, and torch can use 0; compare `nvidia-smi`"]),
        (
            ALL,
            0,
            {"policy": "no such folder there"},
            0,
            ["policy.model = '/models/llava': no such folder"],
        ),
        (
            ALL,
            0,
            {"scorer": "no clip.bin there"},
            0,
            ["scorer.model = '/models/clip': no clip.bin there; put"],
        ),
        (ALL, 0, {"picture": "/a.png cannot be read there (gone)"}, 0, ["data.images: /a.png cannot be read there"]),
        (
            ALL,
            0,
            {"archive": "/a.tar cannot be read there (gone)"},
            0,
            ["data.prompts: /a.tar cannot be read there (gone); put it at that path on every node (a shared disk), "],
        ),
        (ALL, 0, {"temporary": "it cannot be written"}, 0, ["it cannot be written; free it, or set TMPDIR"]),
        (ALL, 0, {"free_bytes": 100 * 2**20}, 0, ["its temporary folder has 100 MiB left, and 512 MiB are needed"]),
        ((), 0, {"free_bytes": 0}, 0, []),
        (
            {"train worker"},
            0,
            {"versions": _without("trl") | {"peft": "0.1"}, "policy": "no such folder there"},
            -70,
            ["trl is not installed", "it has peft 0.1", "its clock is 70 s behind", "policy.model = '/models/llava'"],
        ),
    ],
)
def test_each_fault_is_a_line_with_node_key_value_and_remedy(
    roles: frozenset[str], num_gpus: float, seen: Mapping[str, object], skew: float, says: list[str]
) -> None:
    part = Part(name="node 3 (10.0.0.3)", roles=frozenset(roles), num_gpus=num_gpus)
    found = faults(part, seen=replace(SEEN, **seen), wanted=WANTED, skew_s=skew)  # type: ignore[arg-type]
    assert len(found) == len(says), found
    for line, words in zip(found, says, strict=True):
        assert line.startswith(f"node 3 (10.0.0.3): {words}") and "\n" not in line


def test_what_the_drivers_own_image_lacks_is_compared_with_nothing() -> None:
    """A CPU head may have no engine; that a node for generators has one is enough."""
    part = Part(name="node 1", roles=frozenset({"generator"}))
    wanted = replace(WANTED, versions=_without("vllm"))
    assert not faults(part, seen=SEEN, wanted=wanted)
    assert (
        "vllm is not installed there; install vllm, or"
        in faults(part, seen=replace(SEEN, versions=_without("vllm")), wanted=wanted)[0]
    )


def test_the_first_fault_is_told_and_the_number_of_others() -> None:
    refuse([])
    with pytest.raises(ConfigError, match=r"^a$"):
        refuse(["a"])
    with pytest.raises(ConfigError, match=r"^a \(and 2 more like it\)$"):
        refuse(["a", "b", "c"])


@pytest.mark.parametrize(
    ("at_s", "skew"), [(100.0, 0.0), (101.5, 0.0), (103.0, 0.0), (110.0, 7.0), (99.0, -1.0), (40.0, -60.0)]
)
def test_a_clock_is_off_by_what_the_time_of_the_call_cannot_explain(at_s: float, skew: float) -> None:
    assert skew_s(at_s, asked_s=100.0, answered_s=103.0) == skew


@pytest.mark.parametrize(
    ("resources", "roles"),
    [
        ({"CPU": 0.0}, set()),
        ({}, set()),
        ({"CPU": 1.0}, {"scorer"}),
        ({"CPU": 8.0}, {"scorer", "train worker"}),
        ({"CPU": 8.0, "GPU": 1.0}, {"scorer", "train worker", "generator"}),
    ],
)
def test_a_node_is_asked_about_what_it_has_room_for(resources: dict[str, float], roles: set[str]) -> None:
    demands = [
        Demand(role="scorer", num=1, cpus=1, gpus=0),
        Demand(role="generator", num=2, cpus=2, gpus=1),
        Demand(role="train worker", num=1, cpus=4, gpus=0),
    ]
    part = part_of(resources, name="node", demands=demands)
    assert (part.roles, part.num_gpus) == (roles, resources.get("GPU", 0.0))


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    """What a driver wants whose models and picture lie in `tmp_path`."""
    for folder, file in (("policy", "model.safetensors"), ("clip", "open_clip_config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(b"123")
    (tmp_path / "picture.png").write_bytes(b"12345")
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(b"1234567")
    return Wanted.here(
        policy=str(tmp_path / "policy"),
        scorer=str(tmp_path / "clip"),
        picture=str(tmp_path / "picture.png"),
        archives=[f"{tmp_path}/{number}.tar" for number in range(4)],
    )


def test_a_node_that_has_all_of_it_is_fit(wanted: Wanted) -> None:
    seen = look(wanted, roles=ALL)
    assert not faults(Part(name="node", roles=ALL), seen=seen, wanted=wanted)
    assert seen.has_models
    for role in ALL:
        check_this_node(wanted, role=role)


@pytest.mark.parametrize(
    ("spoil", "role", "says"),
    [
        (lambda folder: shutil.rmtree(folder / "policy"), "generator", "policy.model = '.*/policy': no such folder"),
        (lambda folder: (folder / "policy" / "model.safetensors").unlink(), "train worker", "no model.safetensors"),
        (
            lambda folder: (folder / "policy" / "model.safetensors").write_bytes(b"12"),
            "generator",
            "model.safetensors has 2 bytes there, and 3 on the driver's node",
        ),
        (lambda folder: shutil.rmtree(folder / "clip"), "scorer", "scorer.model = '.*/clip': no such folder"),
        (lambda folder: (folder / "picture.png").unlink(), "scorer", "data.images: .*/picture.png cannot be read"),
        (lambda folder: (folder / "picture.png").write_bytes(b""), "train worker", "picture.png has 0 bytes there"),
        (
            lambda folder: (folder / "1.tar").unlink(),
            "generator",
            r"^node .*: data\.prompts: .*/1\.tar cannot be read there \(No such file .*\); put it at that path",
        ),
        (
            lambda folder: [(folder / f"{number}.tar").write_bytes(b"") for number in range(3)],
            "generator",
            r"0\.tar has 0 bytes there, and 7 on the driver's node \(and 2 more of 3 tars\); put it",
        ),
    ],
)
def test_an_actor_that_starts_on_a_node_without_says_so_in_the_same_words(
    wanted: Wanted, tmp_path: Path, spoil, role: str, says: str
) -> None:
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=says):
        check_this_node(wanted, role=role)
    if role != "scorer":
        check_this_node(replace(wanted, picture="", archives={}), role="scorer")  # which does not need that


def test_a_store_of_pictures_that_a_node_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/a.png"
    monkeypatch.setattr(fitness, "open_file", lambda name: io.BytesIO(b"picture"))
    wanted = Wanted.here(policy=str(tmp_path), scorer=None, picture=url)
    assert wanted.picture == url and not look(wanted, roles=ALL).picture

    def refused(name: str) -> io.BytesIO:
        raise UnreadableError("PermissionError: no credentials", fault="machine")

    monkeypatch.setattr(fitness, "open_file", refused)
    seen = replace(look(wanted, roles={"generator"}), versions=wanted.versions)
    (line,) = faults(Part(name="node 1", roles=frozenset()), seen=seen, wanted=wanted)
    assert line.startswith(f"node 1: data.images: {url} cannot be read there (PermissionError: no credentials); ")
    assert "give every node the credentials of that store" in line
    assert Wanted.here(policy=str(tmp_path), scorer=None, picture=url).picture == "", "nor can the driver"


def test_a_picture_of_the_web_says_nothing_of_the_nodes(tmp_path: Path) -> None:
    wanted = Wanted.here(policy=str(tmp_path), scorer=None, picture="https://example.org/picture.png")
    assert wanted.picture == "" and not look(wanted, roles=ALL).picture


def test_a_temporary_folder_that_takes_nothing_is_found(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_all(what: str) -> Path:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(fitness, "own_folder", refuse_all)
    assert look(wanted, roles=ALL).temporary == "its temporary folder cannot be written (No space left on device)"
    monkeypatch.undo()
    before = set(os.listdir(tempfile.gettempdir()))
    look(wanted, roles=ALL)
    left = {name for name in set(os.listdir(tempfile.gettempdir())) - before if re.match(r"csr-ray-look-.*", name)}
    assert not left


def test_a_model_of_the_hub_that_is_not_there_is_fetched_or_said(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(wanted, policy=f"tiny/llava@{'0' * 40}", policy_files={})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    seen = look(wanted, roles={"generator"})
    assert not seen.has_models and not seen.policy
    with pytest.raises(ConfigError, match=r"^node .*: policy.model = 'tiny/llava' at revision 0+: no such"):
        check_this_node(wanted, role="generator")
    assert look(wanted, roles={"scorer"}).has_models
