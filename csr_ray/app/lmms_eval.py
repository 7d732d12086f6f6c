"""What `csr-ray eval --suite lmms-eval` does: hand over to that package, and bring its results into our form.

It runs by a Python of its own (`csr_ray.app.lmms_environment`) and asks the policy as an endpoint. It fetches its
tasks' data from the hub itself, or takes what is in the hub's cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from csr_ray.app.console import ConsoleView
from csr_ray.app.flags import named
from csr_ray.app.inputs import check_policy, checked_reference
from csr_ray.app.lmms_environment import (
    environment_without_ours,
    install,
    known_python,
    last_words,
    run_logged,
    suite_version,
)
from csr_ray.app.served import NAME, served_policy
from csr_ray.app.stop import SignalStop
from csr_ray.errors import ConfigError, RunFailed
from csr_ray.evaluation.lmms_results import SUITE, read_results, results_in
from csr_ray.machine.placement import serves_on_gpus
from csr_ray.policy.source import local_folder
from csr_ray.records import JsonDict
from csr_ray.store.atomic import make_folder, storage_errors, write_json

_FLAGS = {"policy.model": "--model"}


@dataclass(frozen=True, kw_only=True)
class SuiteFlags:
    """What the command line says of a suite.

    Attributes:
        tasks: by the suite's own names.
        python: of the environment that has the suite; None: this one if it has it, else the cache's.
        is_to_install: make the cache's if it is not there.
        tasks_dir: a folder of further tasks; None: the suite's own only.
        limit: the first so many questions of each task; None: all.
    """

    tasks: Sequence[str]
    python: Path | None = None
    is_to_install: bool = False
    tasks_dir: Path | None = None
    limit: int | None = None


@named(_FLAGS)
def evaluate_by_lmms_eval(
    model: str, *, flags: SuiteFlags, dtype: str, gpus: int | None, kept: Path | None, output: Path
) -> JsonDict:
    """Let lmms-eval measure a model folder on this machine, and write its results as JSON.

    Args:
        model: a Hugging Face folder, its URL, or a hub id.
        gpus: that the model is spread over; None: 1 where the installed engine needs one, else 0.
        kept: folder of lmms-eval's own files, with every answer; None: they are removed.
        output: the JSON file to write. The logs of the server and of lmms-eval lie beside it.

    Raises:
        UserError: something is wrong that the user can mend.
        ActorFailure: the model cannot be served.
    """
    if flags.python is not None and flags.is_to_install:
        raise ConfigError(f"--lmms-install, --lmms-python {flags.python}: the one or the other; leave one out")
    python = known_python(flags.python)
    if python is None and not flags.is_to_install:
        raise ConfigError(
            f"--suite {SUITE}: it is not installed; add --lmms-install, and it gets an environment of its own in the "
            f"cache (docs/evaluation.md)"
        )
    if not flags.tasks:
        raise ConfigError(f"--tasks: name the tasks of {SUITE}, as --tasks pope,mme")
    if flags.tasks_dir is not None and not flags.tasks_dir.is_dir():
        raise ConfigError(f"--tasks-dir {flags.tasks_dir}: no such folder")
    check_policy(model)
    view = ConsoleView(num_rounds=0)
    folder = local_folder(checked_reference(model))
    with contextlib.ExitStack() as held:
        held.enter_context(SignalStop(grace_s=0, before_exit=lambda: None))
        with storage_errors(output.parent):
            make_folder(output.parent)
        python = python or install(say=view.say)
        work = Path(held.enter_context(TemporaryDirectory(prefix="lmms-")))
        results = (kept or work / "results").absolute()
        with storage_errors(results):
            make_folder(results)
        logs = {name: output.with_name(f"{output.stem}.{name}.log").absolute() for name in ("server", SUITE)}
        for log in logs.values():
            log.unlink(missing_ok=True)
        view.say(f"vLLM serves {model} on this machine; its log is {logs['server']}")
        url = held.enter_context(
            served_policy(
                folder,
                dtype=dtype,
                gpus=int(serves_on_gpus()) if gpus is None else gpus,
                log=logs["server"],
                work=work,
            )
        )
        view.say(f"{SUITE} of {python} asks it {', '.join(flags.tasks)}; its log is {logs[SUITE]}")
        command = suite_command(python, flags=flags, url=url, results=results)
        found = read_results(_written(command, results=results, log=logs[SUITE]), tasks=flags.tasks)
    found["suite"]["version"] = suite_version(python)
    write_json(output, value=found)
    return found


def suite_command(python: str, *, flags: SuiteFlags, url: str, results: Path) -> list[str]:
    """How lmms-eval is started.

    The endpoint wants no key, and none is sent to it: that of the environment is for tasks whose answers a judge
    marks.
    """
    arguments = f"model={NAME},base_url={url},api_key=none,timeout=600,max_retries=3,num_concurrent=32"
    command = [python, "-m", "lmms_eval", "--model", "openai", "--model_args", arguments, "--batch_size", "1"]
    command += ["--tasks", ",".join(flags.tasks), "--output_path", str(results), "--log_samples"]
    if flags.tasks_dir is not None:
        command += ["--include_path", str(flags.tasks_dir.absolute())]
    if flags.limit is not None:
        command += ["--limit", str(flags.limit)]
    return command


def _written(command: Sequence[str], *, results: Path, log: Path) -> Path:
    """Run lmms-eval; returns the file of results that it has written.

    Raises:
        RunFailed: it has written none, which it does not always say by its exit code; has its last words.
    """
    known = set(results_in(results))
    # Python puts this folder in front of the environment's packages otherwise, and a `datasets.py` may lie here.
    environment = {**environment_without_ours(), "PYTHONSAFEPATH": "1"}
    code = run_logged(command, log=log, environment=environment)
    new = [file for file in results_in(results) if file not in known]
    if code or not new:
        raise RunFailed(f"{SUITE} ended with code {code} and without results; {last_words(log)}")
    return new[-1]


def print_results(found: JsonDict) -> None:
    """A line a task."""
    for name, task in found["tasks"].items():
        metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in task["metrics"].items())
        print(f"{name}: n {task['n']}, {metrics}")
