"""Answers side by side in a terminal: a column a policy where there is room, else one below the other.

A sentence's colour and the number before it say the same, so nothing is lost without colours (NO_COLOR, a file, a
pipe). Where nobody looks at a terminal every sentence is a line of its own, however long it is.
"""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from csr_ray.report.asked import SCORE_IN_WORDS, AskedAnswer, AskedPicture, AskedVersion, ScoredSentence, SideBySide
from csr_ray.report.gallery import NUM_COLOURS, RewardScale

MOST_SHOWN: Final = 6
"""Pictures whose answers are printed; of more there is a summary, and a page."""
MIN_COLUMN: Final = 32
_GAP: Final = 3
# Those of the page (report.css, --c0 to --c8), which people who see no red or no green can tell apart.
_COLOURS: Final = (
    "#e0813a", "#eba06a", "#f3c19c", "#f8e0cd", "#ededeb", "#d5e4f1", "#aecbe5", "#82b2da", "#5598ce",
)  # fmt: skip
_INK: Final = "#1b1d21"
# Of the sixteen colours of an old terminal, the nine would come out as any.
_FEW: Final = {"low": "black on yellow", "high": "black on cyan"}
_MOST_REASONS: Final = 5


def print_side_by_side(found: SideBySide, *, console: Console) -> None:
    """Print the answers (of few pictures), what they come to (of several), and what was set aside."""
    is_whole = not console.is_terminal  # nobody folds the lines of a file
    console.print(Text(_printable(found.question), style="bold"), soft_wrap=is_whole)
    console.print(Text(_how(found), style="dim"), soft_wrap=is_whole)
    if len(found.pictures) <= MOST_SHOWN:
        for picture in found.pictures:
            console.print()
            _print_picture(picture, of=found, console=console)
    if len(found.pictures) > 1:
        console.print()
        console.print(_summary(found))
    console.print()
    if found.scale is not None and len(found.pictures) <= MOST_SHOWN:
        if (ramp := _ramp(found.scale, console=console)) is not None:
            console.print(ramp)
        console.print(_legend(found), soft_wrap=is_whole)
    if found.set_aside:
        _print_set_aside(found, console=console)


def style_of(sentence: ScoredSentence, *, scale: RewardScale | None, console: Console) -> Style:
    """The colours of a sentence on this console; none where it has no score."""
    if sentence.image_score is None or scale is None or console.color_system is None or console.no_color:
        return Style.null()
    return _style(scale.colour(sentence.image_score), console=console)


def _style(colour: int, *, console: Console) -> Style:
    if console.color_system == "standard":
        kind = "low" if colour < NUM_COLOURS // 3 else "high" if colour >= NUM_COLOURS - NUM_COLOURS // 3 else ""
        return Style.parse(_FEW[kind]) if kind else Style.null()
    return Style(color=_INK, bgcolor=_COLOURS[colour])


def _how(found: SideBySide) -> str:
    drawn = "the most likely answer" if not found.temperature else f"drawn at temperature {found.temperature:g}"
    seed = f", seed {found.seed}" if found.temperature else ""
    return f"{found.run}, {drawn}{seed}, at most {found.max_tokens} tokens"


def _print_picture(picture: AskedPicture, *, of: SideBySide, console: Console) -> None:
    console.print(
        Text(_printable(picture.name), style="bold"),
        Text(f"{picture.width} x {picture.height}", style="dim"),
        soft_wrap=not console.is_terminal,
    )
    num = len(picture.answers)
    if not console.is_terminal:
        for answer, version in zip(picture.answers, of.versions, strict=True):
            _print_lines(answer, version=version, of=of, console=console)
        return
    cells = [
        _cell(answer, version=version, of=of, console=console)
        for answer, version in zip(picture.answers, of.versions, strict=True)
    ]
    if num * MIN_COLUMN + (num - 1) * _GAP <= console.width:
        beside = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        for _ in cells:
            beside.add_column(ratio=1, overflow="fold")
        beside.add_row(*cells)
        console.print(beside)
        return
    for cell in cells:
        console.print(cell)


def _cell(answer: AskedAnswer, *, version: AskedVersion, of: SideBySide, console: Console) -> Table:
    """One answer: what it comes to, and a row a sentence."""
    cell = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    cell.add_column(overflow="fold")
    cell.add_row(_head(answer, version=version, of=of))
    if answer.reason or not answer.sentences:
        cell.add_row(Text(_nothing(answer), style="yellow" if answer.reason else "dim"))
        return cell
    rows = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    is_scored = of.scale is not None
    rows.add_column(width=1)
    if is_scored:
        rows.add_column(justify="right", width=5, no_wrap=True, style="dim")
    rows.add_column(overflow="fold")
    for sentence in answer.sentences:
        text = Text(_printable(sentence.text), style=style_of(sentence, scale=of.scale, console=console))
        score = [Text(_score(sentence))] if is_scored else []
        rows.add_row(Text("+" if sentence.is_new else "", style="bold"), *score, text)
    cell.add_row(rows)
    return cell


def _print_lines(answer: AskedAnswer, *, version: AskedVersion, of: SideBySide, console: Console) -> None:
    """The same as lines that no width folds, for files and pipes."""
    console.print(_head(answer, version=version, of=of), soft_wrap=True)
    if answer.reason or not answer.sentences:
        console.print(Text(f"  {_nothing(answer)}"), soft_wrap=True)
    for sentence in answer.sentences:
        score = f"{_score(sentence):>5} " if of.scale is not None else ""
        line = Text(f"{'+' if sentence.is_new else ' '} {score}")
        line.append(_printable(sentence.text), style=style_of(sentence, scale=of.scale, console=console))
        console.print(line, soft_wrap=True)


def _head(answer: AskedAnswer, *, version: AskedVersion, of: SideBySide) -> Text:
    head = Text(version.label, style="bold")
    if answer.reason:
        return head
    num = len(answer.sentences)
    facts = [f"CLIP {answer.image_score:.1f}"] if answer.image_score is not None else []
    facts.append(f"{num} sentence{'' if num == 1 else 's'}")
    if answer.is_cut:
        facts.append(f"cut at {of.max_tokens} tokens")
    return head.append(f"  {', '.join(facts)}", style="not bold dim")


def _nothing(answer: AskedAnswer) -> str:
    return f"no answer: {_printable(answer.reason)}" if answer.reason else "(it says nothing)"


def _score(sentence: ScoredSentence) -> str:
    return "-" if sentence.image_score is None else f"{sentence.image_score:.1f}"


def _ramp(scale: RewardScale, *, console: Console) -> Text | None:
    """The colours from low to high; None where there are none, or no room."""
    ramp = Text(f"{scale.low:.1f} or less ", style="dim")
    for colour in range(NUM_COLOURS):
        ramp.append("  ", style=_style(colour, console=console) + Style(dim=False))
    ramp.append(f" {scale.high:.1f} or more")
    has_colours = console.color_system is not None and not console.no_color
    return ramp if has_colours and len(ramp) <= console.width else None


def _legend(found: SideBySide) -> Text:
    scale = found.scale
    assert scale is not None
    of = "this run's sentences" if found.scale_is_the_runs else "these sentences"
    legend = Text(style="dim")
    legend.append(f"{SCORE_IN_WORDS}; 90 % of {of} have {scale.low:.1f} to {scale.high:.1f}")
    if any(one.is_new for picture in found.pictures for answer in picture.answers for one in answer.sentences):
        legend.append(f"; +: {found.versions[0].label} does not say this")
    return legend


def _summary(found: SideBySide) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("pictures", "changed", "CLIP", "sentences", "words"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.figures():
        numbers = (one.image_score, one.sentences, one.words)
        table.add_row(
            one.label,
            f"{one.num_answers:,}",
            "-" if one.num_changed is None else f"{one.num_changed:,}",
            *("-" if value is None else f"{value:.1f}" for value in numbers),
        )
    return table


def _print_set_aside(found: SideBySide, *, console: Console) -> None:
    num = len(found.set_aside)
    console.print(Text(f"{num} picture{'' if num == 1 else 's'} set aside:", style="yellow"))
    for one in found.set_aside[:_MOST_REASONS]:
        console.print(Text(f"  {_printable(one.source)}: {_printable(one.reason)}"), soft_wrap=True)
    if num > _MOST_REASONS:
        console.print(Text(f"  and {num - _MOST_REASONS} more; --json lists all of them"))


def _printable(text: str) -> str:
    """A model's words, or a file's name, without what would move a terminal's cursor or change its colours."""
    return "".join(character if character.isprintable() else " " for character in text)
