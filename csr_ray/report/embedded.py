"""What of a run's pairs and trees goes into a page that is one file: how many, which, and in which chunks.

A page of a hundred thousand pairs would take minutes to open, so a run's share is bounded, and the page says how many
there are. What is in it stands in chunks, each of which the page reads when something of it is to be shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from csr_ray.report.gallery import Gallery, RewardScale
from csr_ray.report.pairs import READ_ERRORS, Pairs
from csr_ray.report.pictures import Thumbnails, finder_of
from csr_ray.report.read import Run

MOST_PAIRS: Final = 600
MOST_PAIRS_A_ROUND: Final = 200
FEWEST_PAIRS_A_ROUND: Final = 6
MOST_TREES: Final = 60
PAIRS_A_CHUNK: Final = 50
IMAGES_A_CHUNK: Final = 25
TREES_A_CHUNK: Final = 5

T = TypeVar("T")
Chunk = tuple[str, list[Any]]
"""What it is of ("pairs", "images" or "trees"), and a few of them."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """
    Attributes:
        facts: what the page's script knows from the start: how many there are, and what pairs are ordered by.
        lead: in words, how many pairs are on the page.
    """

    facts: dict[str, Any]
    chunks: list[Chunk]
    lead: str


def embedded_data(run: Run, *, scale: RewardScale | None) -> Embedded:
    """Picks the pairs and the trees for a page, and makes plain values of them."""
    gallery = Gallery(pairs=run.pairs, trees=run.trees, scale=scale)
    thumbnails = Thumbnails(finder=finder_of(run.config, root=run.folder))
    picked = _picked_pairs(run.pairs)
    tree_numbers = _picked_trees(run, picked=picked)
    shown_as = {number: at for at, number in enumerate(tree_numbers)}
    views, index = [], []
    for at, rows in picked:
        table = run.pairs.tables[at]
        try:
            found = gallery.pair_views([(at, row) for row in rows])
            images = table.images(rows)
        except READ_ERRORS:
            continue  # a file that is cut short behind its rewards
        for view, image, row in zip(found, images, rows, strict=True):
            view["image"] = thumbnails.add(image)
            view["tree"] = shown_as.get(view["tree"])
            views.append(view)
            index.append((at, view["margin"], round(float(table.typical[row]), 4)))
    trees = []
    for number in tree_numbers:
        view = gallery.tree_view(number) or {}
        trees.append({**view, "image": thumbnails.add(gallery.image_of_tree(number))})
    facts = {
        **facts_of(run, scale=scale),
        "live": False,
        "index": {key: [row[at] for row in index] for at, key in enumerate(("place", "margin", "typical"))},
        "chunk": {"pairs": PAIRS_A_CHUNK, "images": IMAGES_A_CHUNK, "trees": TREES_A_CHUNK},
        "trees": {"num": len(trees), "of": run.trees.num},
    }
    for place in facts["places"]:
        place["shown"] = sum(row[0] == place["place"] for row in index)
    chunks: list[Chunk] = [
        *(("pairs", some) for some in _chunks(views, size=PAIRS_A_CHUNK)),
        *(("trees", some) for some in _chunks(trees, size=TREES_A_CHUNK)),
        *(("images", some) for some in _chunks(thumbnails.images, size=IMAGES_A_CHUNK)),
    ]
    return Embedded(facts=facts, chunks=chunks, lead=_lead(facts, num_shown=len(index)))


def facts_of(run: Run, *, scale: RewardScale | None) -> dict[str, Any]:
    """What the page's script has to know of a run before it asks for a pair or a tree."""
    tables = run.pairs.tables
    return {
        "live": True,
        "num": run.pairs.num,
        "places": [
            {"place": at, "round": table.place.round_index, "label": str(table.place), "num": table.num}
            for at, table in enumerate(tables)
        ],
        "ends": run.pairs.margin_ends(),
        "scale": None if scale is None else {"low": scale.low, "high": scale.high},
        "trees": {"num": run.trees.num, "of": run.trees.num},
    }


def num_pairs_a_round(num_rounds: int) -> int:
    """How many pairs of each round go into a file: of many rounds fewer of each, so that the page stays a page."""
    return max(FEWEST_PAIRS_A_ROUND, min(MOST_PAIRS_A_ROUND, MOST_PAIRS // max(1, num_rounds)))


def _picked_pairs(pairs: Pairs) -> list[tuple[int, list[int]]]:
    """By table, the rows for the page: half of them at even ranks of the margin, half those that are most typical."""
    num = num_pairs_a_round(len(pairs.tables))
    picked = []
    for at, table in enumerate(pairs.tables):
        try:
            spread = [int(row) for row in table.spread(max(2, num - num // 2) if table.num > num else num)]
            typical = table.typical.argsort(kind="stable")
        except READ_ERRORS:
            continue
        rows = dict.fromkeys(spread)
        for row in typical:
            if len(rows) >= num:
                break
            rows.setdefault(int(row))
        picked.append((at, sorted(rows)))
    return picked


def _picked_trees(run: Run, *, picked: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
    """Numbers of trees for the page, ascending: those of each round's most typical pairs, and the run's newest."""
    numbers: dict[int, None] = {}
    a_round = max(1, (MOST_TREES - 1) // max(1, len(picked)))
    for at, rows in picked:
        table = run.pairs.tables[at]
        for row in sorted(rows, key=lambda row: table.typical[row])[:a_round]:
            try:
                (found,) = table.rows([row])
            except READ_ERRORS:
                break
            number = run.trees.number_of(table.place, id=str(found.get("id")))
            if number is not None:
                numbers.setdefault(number)
    for number in range(run.trees.num - 1, -1, -1):
        if len(numbers) >= MOST_TREES or (picked and number < run.trees.num - 1):
            break
        numbers.setdefault(number)
    return sorted(numbers)


def _chunks(values: Sequence[T], *, size: int) -> Iterable[list[T]]:
    return (list(values[start : start + size]) for start in range(0, len(values), size))


def _lead(facts: dict[str, Any], *, num_shown: int) -> str:
    lead = (
        "Chosen and rejected answers. Every sentence is coloured by its reward; point at one, or move to it with Tab "
        "and the arrow keys, for its scores. The typical pairs come first: their margin is near the median, and no "
        "answer is cut off. "
    )
    if num_shown == facts["num"]:
        return f"{lead}All {num_shown:,} pairs of the run are on this page."
    each = ", ".join(f"{place['shown']:,} of {place['num']:,} in {place['label']}" for place in facts["places"])
    return (
        f"{lead}{num_shown:,} of {facts['num']:,} pairs are on this page, the most typical of each round and others "
        f"at even steps from the smallest margin to the largest: {each}. csr-ray watch shows all of them."
    )
