"""The pages that a person sees, as strings: who are you, which answer is better, and what everybody has said so far.

A page needs nothing but the style sheet and the script that are served beside it. Text of the data reaches it escaped
(Jinja's autoescape). Every choice is a form of its own, so the page works without its script, which only adds keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import jinja2

from csr_ray.annotation.agreement import Agreement
from csr_ray.annotation.items import Sentence
from csr_ray.report.gallery import NUM_COLOURS, RewardScale
from csr_ray.report.page import style_sheet as report_style
from csr_ray.report.pictures import DrawnPicture

STYLE: Final = "annotate.css"
SCRIPT: Final = "annotate.js"


@dataclass(frozen=True, kw_only=True)
class ShownItem:
    """An item as one person sees it.

    Attributes:
        number: by which the server knows it.
        where: round and phase, in words.
        left, right: the answers' sentences.
        is_alone: there is one answer, to be accepted or refused, and nothing on the right.
        sent_at_s: when the page was made, seconds since 1970.
    """

    number: int
    id: str
    where: str
    question: str
    left: Sequence[Sentence]
    right: Sequence[Sentence]
    is_alone: bool
    picture: DrawnPicture | None
    sent_at_s: float


@dataclass(frozen=True, kw_only=True)
class ShownState:
    """What stands around an item.

    Attributes:
        run: how the run is called.
        num_done, num_items: of this session's items, how many this person has judged or skipped, and how many there
            are.
        last: what this person said last, in words; empty where there is nothing to take back.
        people: by name, how many verdicts count, skipped items included.
        agreements: of every two people with an item in common.
        scale: of the colours; None: no sentence has an image score, or none is to be shown.
        asks_of_one: see `name_page`.
        note: something that the person should know, such as that the disk is full.
    """

    run: str
    name: str
    num_done: int
    num_items: int
    last: str
    people: Mapping[str, int]
    agreements: Sequence[Agreement]
    scale: RewardScale | None
    asks_of_one: bool = False
    note: str = ""


def name_page(*, run: str, people: Mapping[str, int], asks_of_one: bool = False, refused: str = "") -> str:
    """The first screen.

    Args:
        asks_of_one: answers come one by one, to be accepted or refused.
        refused: what was given and cannot be a name.
    """
    return _render("name", run=run, people=people, asks_of_one=asks_of_one, refused=refused)


def item_page(item: ShownItem, *, state: ShownState) -> str:
    return _render("item", item=item, state=state, num_colours=NUM_COLOURS)


def done_page(*, state: ShownState) -> str:
    return _render("done", state=state)


def style_sheet() -> str:
    """The report's style, and what this page has beside it."""
    return report_style() + _text_of(STYLE)


def script() -> str:
    return _text_of(SCRIPT)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("csr_ray.annotation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        one_decimal=lambda value: "–" if value is None else f"{value:.1f}".replace("-", "−"),
        percent=lambda value: "–" if value is None else f"{100 * value:.0f} %",
        two=lambda value: "–" if value is None else f"{value:.2f}".replace("-", "−"),
    )
    return environment


def _render(screen: str, **values: object) -> str:
    return _environment().get_template("annotate.html.j2").render(screen=screen, **values)


@cache
def _text_of(name: str) -> str:
    return (resources.files("csr_ray.annotation") / name).read_text(encoding="utf-8")
