"""The commands that use a model and are no run: `csr-ray eval` answers a benchmark, `csr-ray score` scores captions.

Both start actors, hand their pieces of work to a pipeline and go on where they were (`csr_ray.app.bulk`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from csr_ray.app.ask import AskableRun, ask, side_by_side, unfinished_in_words, usable
from csr_ray.app.ask import Asked as AskedQuestion
from csr_ray.app.console import ConsoleView, result_console
from csr_ray.app.doctor import (
    Check,
    check_packages,
    check_python,
    check_reachable,
    is_for_jobs,
    tested_requirements,
)
from csr_ray.app.doctor_fit import Cluster as LiveCluster
from csr_ray.app.doctor_fit import fit_checks
from csr_ray.app.driver_log import logged
from csr_ray.app.evaluate import evaluate, print_evaluation, said_of, what_is_asked
from csr_ray.app.flags import named
from csr_ray.app.idle_keys import check_idle_keys
from csr_ray.app.inputs import (
    check_paths,
    check_policy,
    check_run_dir,
    checked_reference,
    resolve_world,
    uses_world,
)
from csr_ray.app.job import placed_for_a_job
from csr_ray.app.judge import JUDGE_FLAGS, JudgeFlags, replies_file
from csr_ray.app.paths import picture_for_nodes, placed, placed_data, placed_path, placed_scorer
from csr_ray.app.place import opened_to_read
from csr_ray.app.run import world_spec
from csr_ray.app.score import print_scores, score, what_is_scored
from csr_ray.app.stop import SignalStop
from csr_ray.config.load import load_config, parse_config, parse_settings
from csr_ray.config.schema import Cluster, Config, Data, Scorer, Scorers, World
from csr_ray.data.gather import gather
from csr_ray.data.prompts import PromptFile
from csr_ray.data.rows import CAPTION_TEXTS
from csr_ray.data.sources import is_large
from csr_ray.errors import ActorFailure, ConfigError, UserError
from csr_ray.evaluation.answers import BENCHMARKS
from csr_ray.evaluation.benchmarks import NAMES, benchmark_of
from csr_ray.evaluation.benchmarks.judged import check_judge_is_right
from csr_ray.evaluation.benchmarks.marking import ALL_NAMES
from csr_ray.evaluation.benchmarks.questions import Asked, load_asked
from csr_ray.evaluation.suite import Suite, load_suite
from csr_ray.machine.here import Place, place_of_nodes, this_place
from csr_ray.machine.memory import count_weights
from csr_ray.machine.model_shape import shape_of_model
from csr_ray.machine.placement import (
    check_engine_has_gpu,
    demands_of,
    generator_demand,
    scorer_demand,
    serves_on_gpus,
)
from csr_ray.machine.private_ray import cluster_address, listen_on_this_machine_only
from csr_ray.methods.base import method_of
from csr_ray.policy.clip_source import check_clip_source
from csr_ray.report.asked import SideBySide
from csr_ray.stages.view import View
from csr_ray.store.answers import answer_folder
from csr_ray.store.atomic import make_folder, storage_errors, write_json
from csr_ray.store.cache import cache_folder
from csr_ray.store.results import write_result
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.scores import score_folder
from csr_ray.world.build import world_folder

_NOTHING_IS_KEPT = "of an evaluation by itself nothing is kept, but with --out DIR the answers are"
_EVAL_SEED = 0
# What these commands share with runs speaks of a config's keys.
_EVAL_FLAGS = {
    "policy.model": "--model",
    "policy.dtype": "--dtype",
    "eval.data": "--data",
    "eval.chair_synonyms": "--synonyms",
    "eval.chair_instances": "--instances",
    "eval.chair_captions": "--captions",
    "eval.chair_form": "--form",
    "data.images": "--data",
    "generators.min": "--actors",
    "generators.gpus": "--gpus",
    **JUDGE_FLAGS,
}
_ASK_FLAGS = {"generators.gpus": "--gpus"}
_SCORE_FLAGS = {
    "data.prompts": "CAPTIONS",
    "data.images": "--images",
    "data.limit": "--limit",
    "data.urls": "--urls",
    "scorer.model": "--scorer",
    "scorer.dtype": "--dtype",
    "scorers.min": "--actors",
    "scorers.gpus": "--gpus",
}


@named(_EVAL_FLAGS)
def evaluate_model(
    model: str,
    *,
    benchmark: str,
    data: str | None,
    limit: int | None,
    dtype: str,
    actors: int = 1,
    gpus: int | None = None,
    cluster: Cluster | None = None,
    kept: Path | None = None,
    judged_by: JudgeFlags = JudgeFlags(),  # noqa: B008
    output: Path,
    ask: str = "plain",
    decoding: Sequence[str] = ("plain",),
    chair: Mapping[str, Any] | None = None,
) -> None:
    """Do what `csr-ray eval` does: measure any model folder with the questions and metrics of a run's evaluation.

    Args:
        model: a Hugging Face folder, its URL, or a hub id.
        data: folder of the benchmark's files, or its URL; None: of the embedded world, which has `world` only.
        limit: the first N images only; None: all.
        dtype: "float32" or "bfloat16", of the weights while generating.
        actors: how many engines answer.
        gpus: whole GPUs of each; None: as many as the installed engine needs, 1 or 0.
        cluster: whether it autoscales, and how long to wait for a place in it; None: as by default.
        kept: folder of the answers, from which the same call goes on; None: they are not kept.
        judged_by: the judge of a benchmark that has one. Its answers are kept in `kept`, or beside `output`.
        output: the JSON file to write; without `kept` logs go to a hidden folder beside it.
        ask: as `eval.ask`.
        decoding: `decoding.kind`, and further keys of that section, each as key=value.
        chair: the keys of `eval` that name the published CHAIR's files and form; None: the own table.

    Raises:
        UserError: something is wrong that the user can mend.
    """
    if benchmark not in ALL_NAMES:
        raise ConfigError(f"--benchmark = {benchmark!r}: allowed: {', '.join(ALL_NAMES)}")
    if data is None and benchmark != "world":
        raise ConfigError(f"--data: name the folder with the files of {benchmark}")
    if chair and benchmark != "chair":
        raise ConfigError(f"eval.{next(iter(chair))}: of chair only; --benchmark = {benchmark}")
    paths, line = placed_for_a_job({"--json": output, "--out": kept})
    output, kept, cluster = paths["--json"] or output, paths["--out"], cluster or Cluster()
    view = ConsoleView(num_rounds=0)
    if line:
        view.say(line)
    judge = judged_by.session(replies_file(output) if kept is None else kept / "judge.jsonl")
    check_judge_is_right(
        benchmark_of(benchmark) if benchmark in NAMES else None, name=benchmark, has_judge=judge is not None
    )
    check_policy(model)
    if data is None:
        from csr_ray.world.build import cached_world

        data = str(cached_world(world_spec(World())) / "heldout")
    folder = RunFolder(kept or output.parent / f".{output.stem}.logs")
    config = parse_config(
        {
            "generators": {
                "gpus": int(serves_on_gpus()) if gpus is None else gpus,
                "min": actors,
                "max": actors,
            },
            "run": {"dir": str(folder.root)},
            "data": {"prompts": f"{data}/prompts.jsonl"},
            "policy": {"model": model, "dtype": dtype},
            "eval": {
                "benchmarks": [benchmark] if benchmark in BENCHMARKS else [],
                "data": placed_path(data),
                "sampled": benchmark == "world",
                "ask": ask,
                **({"limit": limit} if limit else {}),
                **(chair or {}),
            },
            "decoding": parse_settings("decoding", settings=[f"kind={decoding[0]}", *decoding[1:]]),
        }
    )
    check_engine_has_gpu(config.generators, needs_gpu=serves_on_gpus())
    listen_on_this_machine_only()
    from actors.data.answer import answerers
    from actors.data.judged import do_picture_work
    from actors.runtime import connect_bulk

    unpacked = folder.root / "images"
    suite: Suite | Asked
    if benchmark in BENCHMARKS:
        suite = load_suite(config.eval)
    else:
        suite = load_asked(benchmark, data=placed_path(data), unpack=unpacked, limit=limit)
        suite.check_images(data=data)
    suite = suite.in_way(config.way_to_ask)
    reference = checked_reference(model)
    with contextlib.ExitStack() as held:
        ends = "; the same command goes on where it was"
        if kept is None:
            held.enter_context(_told_that_nothing_is_kept())
            held.callback(shutil.rmtree, unpacked, ignore_errors=True)
            ends = f"; {_NOTHING_IS_KEPT}"
        stop = held.enter_context(SignalStop(grace_s=0, before_exit=lambda: None))
        held.enter_context(logged(folder))
        with storage_errors(folder.root):
            make_folder(folder.logs)  # an actor writes its log only where this folder is there
        parts = kept or Path(held.enter_context(TemporaryDirectory(prefix="parts-", dir=folder.root)))
        connection, wanted = connect_bulk(
            generator_demand(config.generators),
            autoscales=cluster.autoscales,
            wait_s=cluster.wait_s,
            view=view,
            on_ray_lost=lambda reason: stop.end(reason + ends),
            model=reference,
            picture=picture_for_nodes(suite.images),
        )
        # Whoever answers is let go before a judge is asked, who may take long.
        actors_held = held.enter_context(contextlib.ExitStack())
        actors_held.callback(connection.close)
        workers = answerers(
            config.policy,
            generators=config.generators,
            decoding=config.decoding,
            model=reference,
            seed=_EVAL_SEED,
            wanted=wanted,
            logs=folder.logs,
        )
        found = evaluate(
            suite,
            benchmark=benchmark,
            what=what_is_asked(suite, model=model, reference=reference, dtype=dtype, seed=_EVAL_SEED),
            folder=answer_folder(parts),
            quarantine=folder.quarantine,
            answer_jobs=lambda works: do_picture_work(works, workers=workers),
            view=view,
            on_answered=actors_held.close,
            judge=judge,
        )
    write_result(output, value={**found.to_plain(), **said_of(config.way_to_ask)})
    print_evaluation(found, console=result_console())


@named(_SCORE_FLAGS)
def score_captions(
    captions: str,
    *,
    scorer: Scorer,
    scorers: Scorers,
    data: Data,
    cluster: Cluster,
    output: Path,
    json_output: Path | None,
) -> None:
    """Do what `csr-ray score` does: score captions that exist by the CLIP of a run's scorer, and go on where it was.

    Args:
        captions: a prompt file of captions, or a folder of them.
        data: where their pictures are, and how many to score.
        cluster: whether it autoscales, and how long to wait for a place in it.
        output: the folder of the scores (`csr_ray.store.scores`).
        json_output: the file to write the figures to; None: none.

    Raises:
        UserError: something is wrong that the user can mend.
    """
    paths, line = placed_for_a_job({"--out": output, "--json": json_output})
    output, json_output = paths["--out"] or output, paths["--json"]
    view = ConsoleView(num_rounds=0)
    if line:
        view.say(line)
    check_clip_source(scorer.model)
    listen_on_this_machine_only()
    from actors.data.judged import do_picture_work
    from actors.data.reader import RayReader
    from actors.data.score import caption_scorers
    from actors.runtime import connect_bulk

    folder = score_folder(output)
    with SignalStop(grace_s=0, before_exit=lambda: None) as stop, logged(RunFolder(output)):
        held_scorer = placed_scorer(scorer)
        connection, wanted = connect_bulk(
            scorer_demand(scorers),
            autoscales=cluster.autoscales,
            wait_s=cluster.wait_s,
            view=view,
            on_ray_lost=stop.end,
            scorer=held_scorer.model,
        )
        try:
            is_big = is_large(captions)
            where = placed_data(data)
            read = PromptFile(
                where.prompts,
                images=where.images,
                limit=data.limit,
                urls=data.urls,
                texts=CAPTION_TEXTS,
                may_repeat=True,
                reader=RayReader() if is_big else None,
                index_folder=cache_folder() / "prompts" if is_big else None,
            )
            workers = caption_scorers(held_scorer, scorers=scorers, rules=read.rules, wanted=wanted)
            summary = score(
                read,
                what=what_is_scored(captions, scorer=scorer, data=data),
                folder=folder,
                score_jobs=lambda works: do_picture_work(works, workers=workers),
                view=view,
            )
        finally:
            connection.close()
    print_scores(summary, folder=folder, console=result_console())
    if json_output is not None:
        write_json(json_output, value=summary.to_plain())


@named(_ASK_FLAGS)
def ask_run(run_dir: str, *, asked: AskedQuestion, view: View) -> SideBySide:
    """Do what `csr-ray ask` does: put one question about pictures to the policies of a run, one after the other.

    The run is only read. What the actors log is kept if something goes wrong, in a temporary folder that the error
    names.

    Args:
        view: is told how far it is.

    Raises:
        UserError: something is wrong that the user can mend.
    """
    asked.check()
    with opened_to_read(run_dir, key="RUN_DIR", is_wanted=_is_for_asking) as run_folder:
        run = AskableRun.read(run_folder)
        versions = run.chosen(asked.rounds)
        first = versions[0].version
        trained = run.trained(upto=0 if run.state.is_training_free else first)
        gathered = gather(asked.images, key="IMAGE", limit=asked.limit)
        pictures = usable(gathered, places=asked.images)
        if line := unfinished_in_words(run):
            view.say(line)
        num_gpus = asked.gpus
        if num_gpus is None:
            num_gpus = max(1, int(run.state.config.generators.gpus)) if serves_on_gpus() else 0
        config = run.config_to_ask(versions=versions, gpus=num_gpus)
        if uses_world(config):
            from csr_ray.world.build import cached_world

            config = resolve_world(config, folder=cached_world(world_spec(config.world)))
        if config.scorer is not None:
            check_clip_source(config.scorer.model)
        model = checked_reference(
            config.policy.model, revision=run.revision, visual_tokens=config.policy.visual_tokens
        )
        listen_on_this_machine_only()
        from actors.runtime import Runtime

        asking = run.asking(asked, versions=versions)
        with _logs_kept_on_error() as logs, SignalStop(grace_s=0, before_exit=lambda: None) as stop, logged(logs):
            runtime = Runtime.start(
                placed(config),
                method=asking,
                model=model,
                adapters=[one.adapter for one in trained],
                logs=logs.logs,
                view=view,
                on_ray_lost=stop.end,
                picture=picture_for_nodes([one.path for one in pictures]),
            )
            try:
                answers = ask(
                    run,
                    asked,
                    versions=versions,
                    pictures=pictures,
                    generators=runtime.generators,
                    served=len(trained),
                    asking=asking,
                    view=view,
                )
            finally:
                runtime.close()
        return side_by_side(
            run,
            asked,
            versions=versions,
            pictures=pictures,
            answers=answers,
            set_aside=gathered.rejections,
            config=config,
        )


def _is_for_asking(name: str) -> bool:
    """Whether a file of a run at a URL is needed: its config and the adapters; the journal always is."""
    parts = name.split("/")
    return name == "config.yaml" or (parts[0].startswith("round_") and "adapter" in parts[:-1])


@contextlib.contextmanager
def _logs_kept_on_error() -> Iterator[RunFolder]:
    """A folder for logs outside of the run; it goes at the end, and stays after an error that is not the user's."""
    folder = RunFolder(Path(mkdtemp(prefix="csr-ray-ask-")))
    make_folder(folder.logs)
    try:
        yield folder
    except UserError:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise KeyboardInterrupt("stopped; the answers so far are not kept") from None
    except ActorFailure as error:
        raise ActorFailure(f"{error}\nThe logs are in {folder.logs}") from error
    shutil.rmtree(folder.root, ignore_errors=True)


def where_to_run(*, view: View) -> Place:
    """What a run that is started here would compute on: this machine, or the cluster that RAY_ADDRESS names.

    Raises:
        ConfigError: the cluster cannot be joined.
    """
    if not (address := cluster_address()):
        return this_place()
    listen_on_this_machine_only()
    from actors.runtime import nodes_of_cluster

    with SignalStop(grace_s=0, before_exit=lambda: None) as stop:
        nodes = nodes_of_cluster(view=view, on_ray_lost=stop.end)
    return place_of_nodes(nodes, name=f"the cluster at {address}")


def doctor_config(path: str, *, overrides: Sequence[str]) -> tuple[list[Check], bool]:
    """Do what `csr-ray doctor --config` does: compare a config with the cluster that its run would join.

    Neither torch nor the engine is imported. Paths are looked at while the cluster is asked.

    Returns:
        The checks, and whether nothing is missing.

    Raises:
        ConfigError: the config cannot be used.
    """
    given = load_config(path, overrides=overrides)
    method = method_of(given)
    check_idle_keys(given)
    config = resolve_world(given, folder=world_folder(world_spec(given.world))) if uses_world(given) else given
    address = cluster_address() or ""
    requirements = tested_requirements()
    if address and address != "auto" and (ray_check := _address_check(address)) is not None:
        return [
            check_python(requirements),
            *check_packages(requirements),
            ray_check,
            _paths_check(given, config),
        ], False
    with ThreadPoolExecutor(1) as pool:
        paths = pool.submit(_paths_check, given, config)
        listen_on_this_machine_only()
        from actors.cluster.survey import look_at_cluster

        folder = Path(config.policy.model).expanduser()
        # A hub's model is fetched by each node for itself, and one in a store, too.
        policy = str(folder.absolute()) if folder.is_dir() else ""
        ray_check = Check(name="Ray", state="ok", fact=address or "none is named by RAY_ADDRESS")
        with SignalStop(grace_s=0, before_exit=lambda: None) as stop:
            try:
                nodes, free, pending, faults = look_at_cluster(
                    demands_of(config, needs_scorer=method.needs_scorer),
                    policy=policy,
                    autoscales=config.cluster.autoscales,
                    say=ConsoleView(num_rounds=0).say,
                    on_ray_lost=stop.end,
                )
            except ConfigError as error:
                nodes, free, pending, faults = [], [], "", []
                ray_check = Check(name="Ray", state="missing", fact=str(error))
        checks = [check_python(requirements), *check_packages(requirements), ray_check, paths.result()]
    if ray_check.state == "ok":
        checks += fit_checks(
            config,
            cluster=LiveCluster(address=address, nodes=nodes, free=free, pending=pending, faults=faults),
            needs_scorer=method.needs_scorer,
            engine_needs_gpu=serves_on_gpus(),
            shape=shape_of_model(config.policy.model, visual_tokens=config.policy.visual_tokens),
            num_weights=count_weights(folder) if folder.is_dir() else 0,
        )
    return checks, all(check.state != "missing" for check in checks)


def _address_check(address: str) -> Check | None:
    """What is wrong with an address before Ray is asked, which would try for long; None if nothing is."""
    if is_for_jobs(address):
        fact = f"{address} takes jobs, and says nothing of its nodes"
        remedy = "set RAY_ADDRESS to the head's own address (HOST:6379), or submit the doctor as a job"
        return Check(name="Ray", state="missing", fact=fact, remedy=remedy)
    return check_reachable(address)


def _paths_check(given: Config, config: Config) -> Check:
    """Whether what the config names is here; what the world's folder will hold is built by the run."""
    try:
        if uses_world(given) and not Path(config.policy.model).is_dir():
            check_run_dir(config.run.dir)
            return Check(name="paths", state="ok", fact="the embedded world is built on the first run")
        check_paths(config)
    except UserError as error:
        return Check(name="paths", state="missing", fact=str(error))
    return Check(name="paths", state="ok", fact="policy, scorer, prompts, images and run folder can be used")


@contextlib.contextmanager
def _told_that_nothing_is_kept() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_NOTHING_IS_KEPT}") from None
