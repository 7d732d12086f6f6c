"""What `csr-ray pairs` does: a run's pairs as a data set in a folder of its own, with a card."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
from rich.console import Console

from csr_ray.app.kept_run import KeptRun, in_words, kept_run, lost_files
from csr_ray.data.embedded import EmbeddedPictures
from csr_ray.errors import ConfigError, DamageError, NoDataError
from csr_ray.report.charts import size_in_words
from csr_ray.report.pairs_card import ANSWERS, PAIRS, pairs_card
from csr_ray.store.atomic import new_folder
from csr_ray.store.data_set import ExampleFile, Written, write_data_set
from csr_ray.store.run_folder import CARD

_FILES: Final = re.compile(r"round_\d+/([^/]+/)?(pairs|examples)\.parquet")
_KINDS: Final = {"pairs.parquet": (PAIRS, 2), "examples.parquet": (ANSWERS, 1)}


def export_pairs(
    run_dir: str, *, output: Path, rounds: Collection[int] = (), embeds: bool, console: Console
) -> dict[str, Written]:
    """Write the data set, and say what is in it.

    Args:
        output: a folder that is not there yet, or empty.
        rounds: numbers of rounds, from 1; empty: all whose pairs are decided.
        embeds: put the bytes of every picture into the files.

    Raises:
        ConfigError: the folder is there, or there is no such round.
        NoDataError: there are no pairs.
        DamageError: a file of pairs is not what the run wrote.
        StorageError: the disk takes no more.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--out = {str(output)!r}: is there already; name a new folder, or remove it")
    with kept_run(run_dir, is_wanted=is_file_of_examples) as run, new_folder(output) as folder:
        written = write_pairs(run, folder=folder, rounds=rounds, embeds=embeds)
    for line in in_lines(written, rounds=rounds):
        console.print(f"{output}: {line}", markup=False, soft_wrap=True)
    return written


def is_file_of_examples(name: str) -> bool:
    """Whether a file of a run folder has a phase's pairs, or its single answers."""
    return _FILES.fullmatch(name) is not None


def write_pairs(run: KeptRun, *, folder: Path, rounds: Collection[int], embeds: bool) -> dict[str, Written]:
    """Write a run's pairs, and single answers if it has any, into an empty folder, with their card.

    Raises:
        ConfigError, NoDataError, DamageError: as `export_pairs`.
    """
    sources = _sources(run, rounds=rounds)
    written: dict[str, Written] = {}
    with contextlib.closing(EmbeddedPictures(is_wanted=lambda name: True)) as pictures:
        for kind, files in sources.items():
            try:
                written[kind] = write_data_set(
                    folder,
                    sources=files,
                    pictures=pictures if embeds else None,
                    place="data" if len(sources) == 1 else kind,
                )
            except pa.ArrowException as error:
                raise DamageError(
                    f"RUN_DIR = {run.name!r}: its pairs cannot be read: {error}; csr-ray check {run.name} says more"
                ) from error
    written = {kind: one for kind, one in written.items() if one.num_rows} or _refuse_nothing(run, written)
    text = pairs_card(run.summary, config=run.config, run_name=run.folder.title, written=written, is_embedded=embeds)
    (folder / CARD).write_text(text, encoding="utf-8")
    return written


def in_lines(written: dict[str, Written], *, rounds: Collection[int]) -> list[str]:
    """What a person is told of a data set."""
    lines = []
    for kind, one in written.items():
        numbers = in_words({index + 1 for index, _ in one.by_phase})
        inside = {0: "named, not inside", one.num_rows: "inside"}.get(
            one.num_pictures, f"{one.num_pictures:,} inside"
        )
        lines.append(
            f"{one.num_rows:,} {kind} of round{'s' * (',' in numbers)} {numbers}, {size_in_words(one.num_bytes)} "
            f"in {len(one.files)} file{'s' * (len(one.files) > 1)}; pictures {inside}"
        )
        lines += [f"{num:,} {kind} left out: {reason}" for reason, num in one.left_out.items()]
    return lines


def _sources(run: KeptRun, *, rounds: Collection[int]) -> dict[str, list[ExampleFile]]:
    """The files of examples that are asked for, by kind, oldest first; each is what its line says."""
    lost = lost_files(run.journal)
    decided = sorted(run.journal.all("examples"), key=lambda entry: entry["round"])
    known = {entry["round"] + 1 for entry in decided if entry["made"]}
    if unknown := set(rounds) - known:
        raise ConfigError(
            f"--rounds = {in_words(unknown)}: RUN_DIR = {run.name!r} has pairs of round {in_words(known)}"
        )
    found: dict[str, list[ExampleFile]] = {}
    for entry in decided:
        if not entry["made"] or (rounds and entry["round"] + 1 not in rounds):
            continue
        files = {name: plain for name, plain in entry["files"].items() if name not in lost}
        run.check(files)
        for name in files:
            kind, num_answers = _KINDS[name.rsplit("/", 1)[-1]]
            source = ExampleFile(
                path=run.folder.root / name,
                round_index=entry["round"],
                phase=entry["phase"],
                num_answers=num_answers,
            )
            found.setdefault(kind, []).append(source)
    if not found:
        raise NoDataError(
            f"RUN_DIR = {run.name!r}: no pairs yet; they are there when the first round's rollouts are done"
            + (" (those that there were are lost: csr-ray check says which)" if lost else "")
        )
    return {kind: found[kind] for kind in (PAIRS, ANSWERS) if kind in found}


def _refuse_nothing(run: KeptRun, written: dict[str, Written]) -> dict[str, Written]:
    reasons: Sequence[str] = [reason for one in written.values() for reason in one.left_out]
    raise NoDataError(
        f"RUN_DIR = {run.name!r}: nothing is left of its pairs ({', '.join(dict.fromkeys(reasons))}); see that the "
        "pictures are where they were, or leave out --embed-images"
    )
