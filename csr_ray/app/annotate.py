"""`csr-ray annotate`: people judge answers of a run on a page of this machine, and their verdicts become pairs.

The run may be finished or still going on: its files are only read, but for those in RUN_DIR/annotations, and its lock
is neither taken nor asked for.
"""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table

from csr_ray.annotation.agreement import Opinions, agreements, with_reward
from csr_ray.annotation.export import (
    DecidedAnswers,
    Exported,
    decided_answers,
    decided_pairs,
    write_decided_answers,
    write_decided_pairs,
)
from csr_ray.annotation.items import (
    Item,
    ItemKey,
    answer_items,
    candidate_items,
    find_places,
    in_drawn_order,
    items_by_nodes,
    pair_items,
    places_of_round,
)
from csr_ray.annotation.session import Session
from csr_ray.annotation.verdicts import ACCEPTED, ANSWERS_FOLDER, FOLDER, Annotations
from csr_ray.app.annotate_server import AnnotationServer
from csr_ray.app.local_server import serve_until_stopped
from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.store.objects import is_url, local_path
from csr_ray.store.places import Place
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import picture_bytes

PAIRS = f"{FOLDER}/pairs.parquet"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What people are to judge, and how they see it.

    Attributes:
        round_number: as people count, from 1; None: the last round whose pairs are decided, and of single answers
            the last one that has any.
        from_candidates: two whole answers drawn for each prompt, and not the pairs of the run.
        from_answers: every drawn answer by itself, to be accepted or refused.
        limit: at most so many items; None: all.
        seed: of all that is drawn: the order of the items, the sides, and answers out of candidates.
        shows_scores: colour sentences by their image scores.
        port: of the page; 0: any free one.
        opens: show the page in this machine's browser.
    """

    round_number: int | None = None
    from_candidates: bool = False
    from_answers: bool = False
    limit: int | None = None
    seed: int = 0
    shows_scores: bool = True
    port: int = 0
    opens: bool = False


def annotate(run_dir: str, *, asked: Asked, console: Console) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then write what was decided and print what was found.

    It goes to RUN_DIR/annotations: to pairs.parquet, and of single answers to accepted.jsonl.

    Raises:
        UserError: something is wrong that the user can mend.
    """
    run = _local_run(run_dir)
    with opened_server(run, asked=asked, console=console) as server:
        serve_until_stopped(server, who="judge", opens=asked.opens, console=console)
    annotations = Annotations(_folder(run, of_answers=asked.from_answers))
    output = run.root / (ACCEPTED if asked.from_answers else PAIRS)
    if annotations.by_person():
        export(run_dir, output=output, of_answers=asked.from_answers, console=console)
    else:
        _nothing_stands(annotations, output=output, of_answers=asked.from_answers, console=console)


@contextlib.contextmanager
def opened_server(run: RunFolder, *, asked: Asked, console: Console) -> Iterator[AnnotationServer]:
    """A server that listens, though it does not answer yet (`serve_forever`), and a line of what it will ask."""
    places = _places(run, asked=asked)
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
    what = "single answers" if asked.from_answers else what
    annotations = Annotations(_folder(run, of_answers=asked.from_answers))
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
    server = AnnotationServer(session, port=asked.port)
    with server:
        yield server


def export(run_dir: str, *, output: Path, console: Console, of_answers: bool = False) -> None:
    """Write what a majority of the people decided, and print who judged how much and how far they agree.

    Args:
        of_answers: write which single answers are accepted (JSON lines), and not pairs (Parquet).

    Raises:
        NoDataError: nobody has judged anything.
        UserError: the run folder cannot be read, or the file not be written.
    """
    run = _local_run(run_dir)
    places = find_places(run)
    annotations = Annotations(_folder(run, of_answers=of_answers))
    opinions = annotations.by_person()
    if not opinions:
        raise NoDataError(
            f"RUN_DIR = {run.shown}: no verdict stands (nobody has judged anything yet, or all is taken back); start "
            "the same without --export first"
        )
    if of_answers:
        _export_answers(opinions, places=places, output=output, annotations=annotations, console=console)
        return
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
    _print_people_s_agreement(opinions, console=console)
    _print_agreement_with_reward(opinions, items=items, console=console)
    made = {"pairs, by the majority": len(exported.examples)}
    _print_made(made, dropped=exported.dropped, num_bad_lines=annotations.num_bad_lines, console=console)
    console.print(f"pairs: {output}", soft_wrap=True, markup=False)


def _export_answers(
    opinions: Opinions, *, places: Sequence[Place], output: Path, annotations: Annotations, console: Console
) -> None:
    judged = {(key.round_index, key.phase) for verdicts in opinions.values() for key in verdicts}
    here = [place for place in places if (place.round_index, place.phase) in judged]
    items = {item.key: item for place in here for item in answer_items(place)[0]}
    decided = decided_answers(opinions, items=items)
    write_decided_answers(output, decided=decided)
    _print_people(opinions, console=console, of_answers=True)
    _print_people_s_agreement(opinions, console=console)
    num_accepted = decided.num_accepted
    made = {"accepted, by the majority": num_accepted, "refused": len(decided.rows) - num_accepted}
    _print_made(made, dropped=decided.dropped, num_bad_lines=annotations.num_bad_lines, console=console)
    console.print(f"accepted and refused answers: {output}", soft_wrap=True, markup=False)


def _folder(run: RunFolder, *, of_answers: bool) -> Path:
    """Where the files of people are. Verdicts on single answers have nothing to do with those on pairs."""
    return run.root / (ANSWERS_FOLDER if of_answers else FOLDER)


def _places(run: RunFolder, *, asked: Asked) -> list[Place]:
    places = find_places(run)
    number = asked.round_number
    if asked.from_answers and number is None:
        # A round whose answers wait for people has decided nothing yet.
        number = 1 + max(place.round_index for place in places)
    return places_of_round(places, number=number, from_candidates=asked.from_candidates or asked.from_answers)


def _nothing_stands(annotations: Annotations, *, output: Path, of_answers: bool, console: Console) -> None:
    """Say that there is no verdict. What an earlier session has written must not outlive its verdicts."""
    said = "Every verdict is taken back" if annotations.has_begun else "No verdict was given"
    if not output.exists():
        console.print(f"{said}; nothing is written.", markup=False)
        return
    if of_answers:
        write_decided_answers(output, decided=DecidedAnswers())
    else:
        write_decided_pairs(output, exported=Exported(), pictures={})
    what = "answer" if of_answers else "pair"
    console.print(f"{said}; {output} has no {what} any more.", soft_wrap=True, markup=False)


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
        if asked.from_answers:
            found, left_out = answer_items(place)
        elif asked.from_candidates:
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


# ---- what is printed ----


def _print_people(opinions: Opinions, *, console: Console, of_answers: bool = False) -> None:
    said_of = ("accepted", "refused") if of_answers else ("one better", "ties")
    last = () if of_answers else ("left of these",)
    table = _table("name", "judged", *said_of, "skipped", *last, "median seconds")
    for name, verdicts in opinions.items():
        said = Counter(verdict.verdict for verdict in verdicts.values())
        num_better = said["left"] + said["right"]
        seconds = [verdict.seconds for verdict in verdicts.values() if verdict.seconds is not None]
        counts = (said["left"], said["right"]) if of_answers else (num_better, said["tie"])
        left = f"{100 * said['left'] / num_better:.0f} %" if num_better else "–"
        table.add_row(
            name,
            *(f"{num:,}" for num in (len(verdicts), *counts, said["skip"])),
            *(() if of_answers else (left,)),
            f"{statistics.median(seconds):.1f}" if seconds else "–",
        )
    console.print(table)


def _print_people_s_agreement(opinions: Opinions, *, console: Console) -> None:
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


def _print_agreement_with_reward(opinions: Opinions, *, items: Mapping[ItemKey, Item], console: Console) -> None:
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


def _print_made(made: Mapping[str, int], *, dropped: Mapping[str, int], num_bad_lines: int, console: Console) -> None:
    table = _table("items", "")
    for what, num in made.items():
        table.add_row(what, f"{num:,}")
    for reason, num in sorted(dropped.items(), key=lambda entry: (-entry[1], entry[0])):
        table.add_row(f"left out: {reason}", f"{num:,}")
    console.print(table)
    if num_bad_lines:
        console.print(f"lines of verdicts that cannot be read, left out: {num_bad_lines:,}", style="yellow")


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{num:,} {reason}" for reason, num in sorted(dropped.items()))
