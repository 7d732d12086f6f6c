"""What cluster/ tells people and machines to do can be done: commands, versions, graces, secrets, shell, images."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_files import (
    DOCKERFILES,
    FILES,
    FOLDER,
    RAY_UP,
    ROOT,
    name_of,
    ray_commands,
    read,
    read_yaml,
    run_commands,
    setup_cfg,
)

from csr_ray.__main__ import _parser
from csr_ray.app import stop
from csr_ray.cli.order import parse
from csr_ray.config.load import load_config
from csr_ray.config.schema import Run

PINS = re.compile(r"([A-Za-z_-]+)(?:\[[^]]*\])?==([0-9.]+)")


def tool(name: str) -> str:
    """A program of the dev extra, which lies beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is away: make install"
    return found


def pins() -> dict[str, str]:
    """The versions that setup.cfg pins, by name."""
    cfg = setup_cfg()
    text = cfg["options"]["install_requires"] + "".join(cfg["options.extras_require"].values())
    return dict(PINS.findall(text))


# Commands


@pytest.mark.parametrize("name", ["README.md", "rayjob.yaml", "skypilot.yaml", "slurm.sh", "aws.yaml", "gcp.yaml"])
def test_a_file_says_how_a_run_is_started(name: str) -> None:
    assert run_commands(FOLDER / name)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_run_is_one_that_our_own_parser_and_schema_take(path: Path) -> None:
    for command in run_commands(path):
        arguments = parse(_parser(), ["run", *command])
        config = load_config(ROOT / arguments.config, overrides=arguments.overrides)
        assert config.run.dir.startswith(("/", "$BUCKET/")), f"{config.run.dir}: it has to outlive the nodes"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_command_of_ray_is_one_that_its_own_parser_takes(path: Path) -> None:
    from ray.scripts.scripts import cli

    for words in ray_commands(path):
        command, rest = cli.commands[words[0]], words[1:]
        if words[0] == "job":
            command, rest = command.commands[words[1]], words[2:]
        command.make_context(command.name, [word for word in rest if '"${' not in word])


def test_commands_of_ray_are_found() -> None:
    found = {path.name: {words[0] for words in ray_commands(path)} for path in FILES}
    assert found["README.md"] >= {"up", "down", "dashboard", "exec", "job"}
    assert all(found[name] >= {"start", "stop"} for name in RAY_UP)
    assert found["rayjob.yaml"] == {"job"}


def test_the_script_for_slurm_never_ends_other_peoples_ray() -> None:
    commands = [line for line in read("slurm.sh").splitlines() if not line.startswith("#")]
    assert not [line for line in commands if re.search(r"ray\"? stop|pkill|killall", line)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_variables_of_ours_are_read_by_something(path: Path) -> None:
    sources = [*(ROOT / "csr_ray").rglob("*.py"), *(ROOT / "actors").rglob("*.py")]
    read_somewhere = "".join(source.read_text(encoding="utf-8") for source in sources) + read("slurm.sh")
    for variable in set(re.findall(r"CSR_RAY_[A-Z_]+", path.read_text(encoding="utf-8"))):
        assert re.search(rf"\b{variable}\b", read_somewhere), variable


# Versions


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_takes_its_versions_from_setup_cfg(name: str) -> None:
    text = read(name)
    assert not PINS.findall(text), "setup.cfg has the versions"
    extras = set(re.findall(r"--extra (\w+)", text))
    assert extras == {"gpu" if name == "Dockerfile" else "cpu", "s3", "gcs", "ray_up"}
    assert extras <= set(setup_cfg()["options.extras_require"])
    copied = [source for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for source in line.split()]
    assert {"setup.cfg", "actors", "csr_ray", "configs"} <= set(copied)
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_without_gpu_overrides_what_the_engine_pins_as_make_install_does() -> None:
    command = re.search(r"&& (grep .*?) > /tmp/overrides", read("Dockerfile.cpu"))
    assert command and command[1].replace("$$", "$") in (ROOT / "Makefile").read_text(encoding="utf-8")
    found = subprocess.run(["bash", "-c", command[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = pins()
    assert dict(PINS.findall(found)) == {name: wanted[name] for name in ("torch", "torchvision", "torchaudio")}


def test_the_image_for_gpus_has_the_cuda_that_torch_is_built_for() -> None:
    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin
    version = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    built_for = re.search(r"cuda: Optional\[str\] = '([0-9.]+)'", version)
    base = re.search(r"^FROM nvidia/cuda:(\d+\.\d+)", read("Dockerfile"), re.M)
    if built_for is None:
        pytest.skip("this torch is built without CUDA")
    assert base and base[1] == built_for[1]


def test_files_name_the_version_of_ray_that_setup_cfg_pins() -> None:
    assert read_yaml("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pins()["ray"]
    assert {version for name, version in PINS.findall(read("README.md")) if name == "ray"} == {pins()["ray"]}


@pytest.mark.parametrize("name", [*RAY_UP, "rayjob.yaml", "skypilot.yaml"])
def test_an_image_is_named_by_its_digest(name: str) -> None:
    images = re.findall(r"registry\.example\.com\S+", read(name))
    assert images and all(re.fullmatch(r"\S+/csr-ray@sha256:[0-9a-f]{64}", image) for image in images)


@pytest.mark.parametrize("name", [*RAY_UP, "rayjob.yaml"])
def test_a_run_with_a_relative_folder_lands_on_what_all_nodes_see(name: str) -> None:
    assert re.findall(r"CSR_RAY_RUNS(?:=|, value: )([^\s}]+)", read(name)) == ["/shared/runs"]


# Retries


def test_skypilot_says_what_is_tried_again_and_tries_once() -> None:
    recovery = read_yaml("skypilot.yaml")["resources"]["job_recovery"]
    assert recovery["max_restarts_on_errors"] == read_yaml("rayjob.yaml")["spec"]["backoffLimit"]
    comment = " ".join(
        line.strip(" #") for line in read("skypilot.yaml").splitlines() if line.strip().startswith("#")
    )
    assert "2 and 3" in comment and "fail again" in comment


def test_the_readme_says_how_often_kuberay_tries_again_and_how_a_finished_run_goes_on() -> None:
    section = read("README.md").partition("\n## Kubernetes\n")[2].partition("\n## ")[0]
    limit = read_yaml("rayjob.yaml")["spec"]["backoffLimit"]
    assert limit == 1, "a bad config is as bad the second time"
    assert f"`backoffLimit: {limit}`" in section and "exit code" in section
    (go_on,) = [line for line in section.splitlines() if line.startswith("| go on")]
    assert go_on.index("kubectl delete rayjob csr-ray") < go_on.index("kubectl apply -f cluster/rayjob.yaml")
    comment = next(line for line in read("rayjob.yaml").splitlines() if "backoffLimit:" in line)
    assert "#" in comment


# Graces


def seconds_to_stop() -> float:
    """What a run may take that is told to stop."""
    return float(Run.model_fields["grace_s"].default) + stop._SETTLE_S


@pytest.mark.parametrize("name", [*RAY_UP, "rayjob.yaml"])
def test_ray_waits_for_a_job_that_is_stopped(name: str) -> None:
    waits = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S(?:=|, value: \")(\d+)", read(name))
    assert len(waits) == 1 and int(waits[0]) >= seconds_to_stop()


def test_pods_outlive_a_run_that_is_stopped() -> None:
    cluster = read_yaml("rayjob.yaml")["spec"]["rayClusterSpec"]
    wait = re.search(r'RAY_JOB_STOP_WAIT_TIME_S, value: "(\d+)"', read("rayjob.yaml"))
    assert wait
    assert cluster["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= int(wait[1]) + 10
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        asleep = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert asleep[0] == "sleep" and seconds_to_stop() <= int(asleep[1]) < pod["terminationGracePeriodSeconds"]


def test_slurm_gives_a_run_time_to_stop() -> None:
    script = read("slurm.sh")
    notice = re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", script, re.M)
    tries = re.search(r"for _ in \{1\.\.(\d+)\}; do.*?sleep ([0-9.]+)", script, re.S)
    assert notice and tries
    patience_s = int(tries[1]) * float(tries[2])
    assert patience_s >= seconds_to_stop()
    assert int(notice[1]) >= 3 * patience_s, "run, workers and head, one after the other"


# Secrets


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_secret_stands_in_a_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"hf_[A-Za-z]{20,}|AKIA[0-9A-Z]{12,}|-----BEGIN|\bgh[ps]_\w{20,}", text)
    named = re.findall(r"(\w*(?:TOKEN|SECRET|PASSWORD|ACCESS_KEY)\w*)(?:=|: )[\"']?([^\s\"',)]*)", text)
    for name, value in named:
        is_a_path = name.endswith("_PATH") and "/" in value
        is_made_here = value.startswith(("$(", "...", "null", "`")) or value == ""
        assert is_a_path or is_made_here, f"{name} = {value}"


@pytest.mark.parametrize("name", [*RAY_UP, "rayjob.yaml", "slurm.sh"])
def test_every_cluster_asks_for_a_token(name: str) -> None:
    if name == "rayjob.yaml":
        assert read_yaml(name)["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    else:
        assert "RAY_AUTH_MODE=token" in read(name)


# Shell and images


def test_shellcheck_finds_nothing() -> None:
    subprocess.run([tool("shellcheck"), str(FOLDER / "slurm.sh")], check=True)
    script = "#!/usr/bin/env bash\nBUCKET=s3://your-bucket\n" + read_yaml("skypilot.yaml")["run"]
    subprocess.run([tool("shellcheck"), "--exclude=SC2086", "-"], input=script, text=True, check=True)


def test_shellcheck_finds_nothing_in_what_the_readme_has_people_type() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", read("README.md"), re.S)
    assert len(blocks) >= 8
    script = "#!/usr/bin/env bash\n" + "\n".join(blocks)
    subprocess.run([tool("shellcheck"), "--severity=warning", "-"], input=script, text=True, check=True)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    subprocess.run([tool("hadolint"), str(FOLDER / name)], check=True)
