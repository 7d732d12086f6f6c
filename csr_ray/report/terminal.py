"""The table by round at the end of a run, for the terminal. Knows nothing of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from csr_ray.machine.cost import in_words
from csr_ray.report.figures import RoundFigures, ending, headline, round_figures, section, split_columns

_ANY_WIDTH = 1000

Column = tuple[str, Callable[[RoundFigures], str]]


def print_round_table(summary: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print a row for the base model and for each round of a `summary.json`, and the headline beneath.

    A terminal too narrow for all the columns gets two tables, quality above and work below. POPE's splits, where a
    run has them, are a table of their own.
    """
    console = console or Console()
    rows = round_figures(summary)
    work = _work(rows)
    quality = QUALITY if any(row.eval for row in rows) else ()
    tables = [_table(rows, columns=[*quality, *work])]
    if quality and not fits(tables[0], console=console):
        tables = [_table(rows, columns=columns) for columns in (quality, work)]
    if splits := split_columns(rows):
        heads = [f"{name}\n{figure}" for name in splits.names for figure in ("acc", "F1")]
        heads += ["mean\nF1"] * (len(splits.keys) - len(heads))
        columns = [(head, _share(key)) for head, key in zip(heads, splits.keys, strict=True)]
        tables.append(_table(rows, columns=columns))
    for table in tables:
        console.print()
        console.print(table)
    console.print()
    end = ending(summary)
    console.print(headline(rows, is_over=bool(end)), highlight=False, markup=False, style="bold")
    if end:
        console.print(end, highlight=False, markup=False, style="yellow", soft_wrap=True)
    if words := in_words(section(summary, key="cost")):
        console.print(f"used: {words}", highlight=False, markup=False, style="dim")
    asked = {row.label: f"{row.eval['num_images']:,.0f}" for row in rows if "num_images" in row.eval}
    if len(set(asked.values())) > 1:
        counts = ", ".join(f"{label} {count}" for label, count in asked.items())
        console.print(f"images evaluated: {counts}", highlight=False, markup=False, style="dim")


def fits(table: Table, *, console: Console) -> bool:
    """Whether the console is wide enough for every cell of a table as it is."""
    return Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).maximum <= console.width


def _table(rows: Sequence[RoundFigures], *, columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("round", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(
            f"{row.label} {row.method}".rstrip(),
            *(show(row) for _, show in columns),
            style="dim" if row.index is None else "",
        )
    return table


def _share(key: str) -> Callable[[RoundFigures], str]:
    return lambda row: "-" if (value := row.eval.get(key)) is None else f"{100 * value:.1f}%"


def _number(of: Callable[[RoundFigures], float | None], *, form: str) -> Callable[[RoundFigures], str]:
    return lambda row: "-" if (value := of(row)) is None else format(value, form)


def _seconds(of: Callable[[RoundFigures], float | None]) -> Callable[[RoundFigures], str]:
    return lambda row: "-" if (value := of(row)) is None else f"{value:.1f}s" if value < 9.95 else f"{value:.0f}s"


QUALITY: tuple[Column, ...] = (
    ("CHAIR_s", _share("chair_s")),
    ("CHAIR_i", _share("chair_i")),
    ("recall", _share("recall")),
    ("repeats", _share("repeat")),
    ("yes/no", _share("pope_acc")),
    ("sent.", _number(lambda row: row.eval.get("sentences"), form=".1f")),
)


def _work(rows: Sequence[RoundFigures]) -> list[Column]:
    """What the rounds made and how long it took; without what none of them has."""
    kinds = {row.imitates for row in rows if row.num_pairs}
    made = "answers" if kinds == {True} else "examples" if len(kinds) > 1 else "pairs"
    columns: list[Column] = []
    if any(row.chosen_reward is not None for row in rows):
        columns.append(("reward\nchosen", _number(lambda row: row.chosen_reward, form=".1f")))
        columns.append(("reward\nreject.", _number(lambda row: row.rejected_reward, form=".1f")))
    columns.append((made, _number(lambda row: row.num_pairs, form=",d")))
    columns.append(("rollout", _stage("rollout")))
    columns.append(("train", _seconds(lambda row: row.train_s)))
    columns.append(("publish", _stage("publish")))
    if any("gate" in row.stages for row in rows):
        columns.append(("gate", _stage("gate")))
    return [*columns, ("eval", _stage("eval"))]


def _stage(name: str) -> Callable[[RoundFigures], str]:
    return _seconds(lambda row: row.stages.get(name))
