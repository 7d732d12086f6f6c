"""Shows in what worlds differ: as a table, and as a sheet of scenes to look at. Trains and writes no world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from csr_ray.world.data import sample_scenes
from csr_ray.world.scenes import Scene, SceneObject, draw_scene
from csr_ray.world.variant import TransformerShape, Variety, variety
from csr_ray.world.vocabulary import PLACES

_NUM_SCENES: Final = 5
_CELL_PX: Final = 112
_GAP_PX: Final = 4
_RADIUS: Final = 11 / 64
_BACKGROUND: Final = (235, 235, 240)


def print_variants(numbers: Sequence[int]) -> None:
    """Print a row a variant, as Markdown: its words, the size of its pictures, its prior and its models' shapes."""
    columns = ("variant", "kinds, in pairs", "colours", "px / patch", "prior", "policy", "scorer", "steps")
    print(_line(columns))
    print(_line(["---"] * len(columns)))
    for number in numbers:
        print(_line(_cells(variety(number))))
    print()
    print("Prior: two families in a scene / partner there / of the same colour / absent one told / answered yes.")
    print("Shapes: width x layers x heads, of the tower and of what reads or writes. Steps: of policy and scorer.")


def draw_sheet(numbers: Sequence[int], *, path: Path) -> None:
    """Draw a row a variant: scenes as its seed 0 has them, then every kind of it, two by two.

    Args:
        path: the picture to write; its ending says the format.
    """
    num_columns = _NUM_SCENES + max(len(variety(number).pairs) for number in numbers)
    sheet = Image.new("RGB", (num_columns * _CELL_PX, len(numbers) * _CELL_PX), "white")
    side = _CELL_PX - _GAP_PX
    for row, number in enumerate(numbers):
        for column, scene in enumerate(_scenes_to_show(variety(number))):
            drawn = draw_scene(scene, variety=variety(number)).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(drawn, (column * _CELL_PX, row * _CELL_PX))
    sheet.save(path)


def _scenes_to_show(shown: Variety) -> list[Scene]:
    scenes = sample_scenes(0, split="train", num=_NUM_SCENES, variety=shown)
    colours = tuple(shown.colours)
    for first in range(0, len(shown.kinds), 2):
        objects = []
        for index, place in enumerate(PLACES):
            kind = shown.kinds[(first + index) % len(shown.kinds)]
            row, column = divmod(index, 2)
            centre = ((column + 0.5) * shown.side_px / 2, (row + 0.5) * shown.side_px / 2)
            colour = colours[(first + index) % len(colours)]
            radius = _RADIUS * shown.side_px
            objects.append(SceneObject(kind=kind, colour=colour, place=place, centre_px=centre, radius_px=radius))
        scenes.append(Scene(objects=tuple(objects), background=_BACKGROUND))
    return scenes


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(shown: Variety) -> list[str]:
    prior = shown.prior
    return [
        str(shown.number),
        ", ".join("-".join(pair) for pair in shown.pairs),
        ", ".join(shown.colours),
        f"{shown.side_px} / {shown.patch_px}",
        " / ".join(
            f"{value:.2f}"
            for value in (
                prior.two_families,
                prior.partner,
                prior.same_colour,
                prior.hallucination,
                prior.false_yes,
            )
        ),
        f"{_shape(shown.tower)}, {_shape(shown.language)}",
        f"{_shape(shown.clip_tower)}, {_shape(shown.clip_text)}",
        f"{shown.policy_steps}, {shown.clip_steps}",
    ]


def _shape(shape: TransformerShape) -> str:
    return f"{shape.width}x{shape.num_layers}x{shape.num_heads}"
