"""`csr-ray annotate`: people judge answers of a run on a page of this machine, and their verdicts become pairs.

The run may be finished or still going on: its files are only read, but for those in RUN_DIR/annotations, and its lock
is neither taken nor asked for.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table

from csr_ray.annotation.agreement import Opinions, agreements, with_reward
from csr_ray.annotation.export import Exported, decided_pairs, write_decided_pairs
from csr_ray.annotation.items import (
    Item,
    ItemKey,
    Place,
    candidate_items,
    find_places,
    in_drawn_order,
    items_by_nodes,
    pair_items,
    places_of_round,
)
from csr_ray.annotation.session import Session
from csr_ray.annotation.verdicts import FOLDER, Annotations
from csr_ray.app.annotate_server import AnnotationServer
from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.store.objects import is_url, local_path
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import picture_bytes

PAIRS = "pairs.parquet"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What people are to judge, and how they see it.

    Attributes:
        round_number: as people count, from 1; None: the last round whose pairs are decided.
        from_candidates: two whole answers drawn for each prompt, and not the pairs of the run.
        limit: at most so many items; None: all.
        seed: of all that is drawn: the order of the items, the sides, and answers out of candidates.
        shows_scores: colour sentences by their image scores.
        port: of the page; 0: any free one.
    """

    round_number: int | None = None
    from_candidates: bool = False
    limit: int | None = None
    seed: int = 0
    shows_scores: bool = True
    port: int = 0


def annotate(run_dir: str, *, asked: Asked, console: Console) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then write RUN_DIR/annotations/pairs.parquet and print what was found.

    Raises:
        UserError: something is wrong that the user can mend.
    """
    run = _local_run(run_dir)
    with opened_server(run, asked=asked, console=console) as server:
        console.print(f"  {server.url}", soft_wrap=True, markup=False, style="bold")
        console.print(
            "Open it in a browser of this machine; whoever has the URL can judge. From another one: "
            f"ssh -L {server.server_address[1]}:127.0.0.1:{server.server_address[1]} THIS_MACHINE. Ctrl-C ends it.",
            soft_wrap=True,
            markup=False,
        )
        with _ended_by_signals():
            server.serve_forever(poll_interval=0.2)
    annotations = Annotations(run.root / FOLDER)
    if annotations.by_person():
        export(run_dir, output=annotations.folder / PAIRS, console=console)
    else:
        _nothing_stands(annotations, console=console)


@contextlib.contextmanager
def opened_server(run: RunFolder, *, asked: Asked, console: Console) -> Iterator[AnnotationServer]:
    """A server that listens, though it does not answer yet (`serve_forever`), and a line of what it will ask."""
    places = places_of_round(find_places(run), number=asked.round_number, from_candidates=asked.from_candidates)
    config = _config_of(run)
    found, dropped = _items(places, asked=asked, config=config)
    items = in_drawn_order(found, seed=asked.seed, limit=asked.limit)
    if not items:
        raise NoDataError(
            f"RUN_DIR = {run.shown}: nothing to judge in {places[0]}: {_reasons(dropped) or 'no pairs'}"
        )
    of = f" of {len(found):,}" if len(items) < len(found) else ""
    left_out = f"; left out: {_reasons(dropped)}" if dropped else ""
    what = "two answers drawn for each prompt" if asked.from_candidates else "pairs"
    annotations = Annotations(run.root / FOLDER)
    index = places[0].round_index
    begun = "" if asked.round_number is not None else _begun_elsewhere(annotations, round_index=index)
    console.print(
        f"{run.name}: {len(items):,}{of} items of round {index + 1} ({what}){begun}{left_out}",
        soft_wrap=True,
        markup=False,
    )
    session = Session(
        run,
        items=items,
        annotations=annotations,
        data=None if config is None else config.data,
        seed=asked.seed,
        shows_scores=asked.shows_scores,
    )
    try:
        server = AnnotationServer(session, port=asked.port)
    except OSError as error:
        raise ConfigError(f"--port = {asked.port}: {error.strerror or error}; name another one, or none") from error
    with server:
        yield server


def export(run_dir: str, *, output: Path, console: Console) -> None:
    """Write what a majority of the people decided as pairs, and print who judged how much and how far they agree.

    Raises:
        NoDataError: nobody has judged anything.
        UserError: the run folder cannot be read, or the file not be written.
    """
    run = _local_run(run_dir)
    places = find_places(run)
    annotations = Annotations(run.root / FOLDER)
    opinions = annotations.by_person()
    if not opinions:
        raise NoDataError(
            f"RUN_DIR = {run.shown}: no verdict stands (nobody has judged anything yet, or all is taken back); start "
            "the same without --export first"
        )
    config = _config_of(run)
    nodes = {
        key: (verdict.left_nodes, verdict.right_nodes)
        for verdicts in opinions.values()
        for key, verdict in verdicts.items()
    }
    items = items_by_nodes(places, wanted=nodes, reward=None if config is None else config.reward)
    exported = decided_pairs(opinions, items=items)
    pictures = _embedded_pictures(places, exported=exported)
    write_decided_pairs(output, exported=exported, pictures=pictures)
    _print_people(opinions, console=console)
    _print_agreement(opinions, items=items, console=console)
    _print_exported(exported, output=output, num_bad_lines=annotations.num_bad_lines, console=console)


def _nothing_stands(annotations: Annotations, *, console: Console) -> None:
    """Say that there is no verdict. Pairs that an earlier session has written must not outlive their verdicts."""
    pairs = annotations.folder / PAIRS
    said = "Every verdict is taken back" if annotations.has_begun else "No verdict was given"
    if pairs.exists():
        write_decided_pairs(pairs, exported=Exported(), pictures={})
        console.print(f"{said}; {pairs} has no pair any more.", soft_wrap=True, markup=False)
    else:
        console.print(f"{said}; nothing is written.", markup=False)


def _begun_elsewhere(annotations: Annotations, *, round_index: int) -> str:
    """That people have judged items of another round, and none of this one yet; empty if they have."""
    begun = {key.round_index for verdicts in annotations.by_person().values() for key in verdicts}
    if not begun or round_index in begun:
        return ""
    last = max(begun) + 1
    return f"; people have begun round {last}: --round {last} goes on with it"


def _local_run(run_dir: str) -> RunFolder:
    if is_url(run_dir):
        raise ConfigError(f"RUN_DIR = {run_dir}: people judge a run in a folder of this machine; copy it here first")
    return RunFolder(local_path(run_dir))


def _config_of(run: RunFolder) -> Config | None:
    try:
        return load_config(run.config)
    except ConfigError:
        return None  # of another version; then pictures are looked for by their names alone


def _items(places: Sequence[Place], *, asked: Asked, config: Config | None) -> tuple[list[Item], Counter[str]]:
    items: list[Item] = []
    dropped = Counter[str]()
    for place in places:
        if asked.from_candidates:
            reward = None if config is None else config.reward
            found, left_out = candidate_items(place, reward=reward, seed=asked.seed)
        else:
            found, left_out = pair_items(place)
        items += found
        dropped += left_out
    return items, dropped


def _embedded_pictures(places: Sequence[Place], *, exported: Exported) -> dict[str, bytes]:
    """Those pictures that the run's own pairs hold; by their names alone not everybody could open them."""
    names = {example.ask.picture.path for example in exported.examples}
    found: dict[str, bytes] = {}
    for place in places:
        if names and place.pairs.is_file():
            with contextlib.suppress(OSError, ValueError, KeyError, pa.ArrowException):
                found |= picture_bytes(place.pairs, names=names)
    return found


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block without an error at Ctrl-C or SIGTERM, also where a shell had let Ctrl-C be ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = {}
    if threading.current_thread() is threading.main_thread():
        earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


# ---- what is printed ----


def _print_people(opinions: Opinions, *, console: Console) -> None:
    table = _table("name", "judged", "one better", "ties", "skipped", "left of these", "median seconds")
    for name, verdicts in opinions.items():
        said = Counter(verdict.verdict for verdict in verdicts.values())
        num_better = said["left"] + said["right"]
        seconds = [verdict.seconds for verdict in verdicts.values() if verdict.seconds is not None]
        table.add_row(
            name,
            f"{len(verdicts):,}",
            f"{num_better:,}",
            f"{said['tie']:,}",
            f"{said['skip']:,}",
            f"{100 * said['left'] / num_better:.0f} %" if num_better else "–",
            f"{statistics.median(seconds):.1f}" if seconds else "–",
        )
    console.print(table)


def _print_agreement(opinions: Opinions, *, items: Mapping[ItemKey, Item], console: Console) -> None:
    if pairs := agreements(opinions):
        table = _table("people", "items of both", "agree", "Cohen's kappa")
        for pair in pairs:
            table.add_row(
                f"{pair.first}, {pair.second}",
                f"{pair.num_items:,}",
                "–" if pair.share is None else f"{100 * pair.share:.0f} %",
                "–" if pair.kappa is None else f"{pair.kappa:.2f}",
            )
        console.print(table)
    table = _table("the run's reward against", "items", "same choice", "95 %")
    for found in with_reward(opinions, items=items):
        share = found.share
        if share is None:
            table.add_row(found.who, "0", "–", "–")
            continue
        low, high = max(0.0, share.low), min(1.0, share.high)
        table.add_row(
            found.who, f"{found.num_items:,}", f"{100 * share.value:.0f} %", f"{100 * low:.0f} to {100 * high:.0f} %"
        )
    console.print(table)


def _print_exported(exported: Exported, *, output: Path, num_bad_lines: int, console: Console) -> None:
    table = _table("items", "")
    table.add_row("pairs, by the majority", f"{len(exported.examples):,}")
    for reason, num in sorted(exported.dropped.items(), key=lambda entry: (-entry[1], entry[0])):
        table.add_row(f"left out: {reason}", f"{num:,}")
    console.print(table)
    if num_bad_lines:
        console.print(f"lines of verdicts that cannot be read, left out: {num_bad_lines:,}", style="yellow")
    console.print(f"pairs: {output}", soft_wrap=True, markup=False)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{num:,} {reason}" for reason, num in sorted(dropped.items()))
