"""Sampling and drawing of scenes: up to four coloured shapes, one a quadrant, partners often together.

Knows the vocabulary and pixels; knows nothing of language or models. A scene carries its whole geometry, so drawing
is a pure function of it and the random generator is needed for sampling only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw

from csr_ray.world.outlines import OUTLINES
from csr_ray.world.variant import Variety
from csr_ray.world.vocabulary import PLACES, mirrored_place

_SUPERSAMPLING: Final = 2
# Of a picture of 64 pixels a side; others in proportion.
_RADIUS_PX: Final = (9.0, 13.0)
_RADIUS_SIDE_PX: Final = 64


@dataclass(frozen=True)
class SceneObject:
    """One shape: what it is, its quadrant, and its exact centre and radius in pixels."""

    kind: str
    colour: str
    place: str
    centre_px: tuple[float, float]
    radius_px: float


@dataclass(frozen=True)
class Scene:
    """Objects in the order in which they were placed, on a flat background (RGB, 0..255)."""

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds that are present (each at most once)."""
        return frozenset(item.kind for item in self.objects)

    def absent_partners(self, partner: Mapping[str, str]) -> tuple[SceneObject, ...]:
        """Objects whose partner kind is not in the scene: each one an opportunity to hallucinate."""
        return tuple(item for item in self.objects if partner[item.kind] not in self.kinds)


def sample_scene(rng: np.random.Generator, *, variety: Variety) -> Scene:
    """Draw one scene: one or two pair families, each in a row of its own, the partner present as the prior has it."""
    num_families = 2 if rng.random() < variety.prior.two_families else 1
    families = rng.choice(len(variety.pairs), size=num_families, replace=False)
    first_row = int(rng.integers(2))
    objects: list[SceneObject] = []
    for position, family in enumerate(families):
        row = (first_row + position) % 2
        place = PLACES[2 * row + int(rng.integers(2))]
        kind = variety.pairs[int(family)][int(rng.integers(2))]
        colour = _sample_colour(rng, variety=variety)
        objects.append(_place_object(rng, kind=kind, colour=colour, place=place, side_px=variety.side_px))
        if rng.random() < variety.prior.partner:
            partner, colour = variety.partner[kind], partner_colour_for(rng, colour=colour, variety=variety)
            place = mirrored_place(place)
            objects.append(_place_object(rng, kind=partner, colour=colour, place=place, side_px=variety.side_px))
    red, green, blue = (int(value) for value in rng.integers(218, 252, size=3))
    return Scene(objects=tuple(objects), background=(red, green, blue))


def partner_colour_for(rng: np.random.Generator, *, colour: str, variety: Variety) -> str:
    """Return a partner's colour: the same as often as the prior has it, else any (it may be the same by chance)."""
    return colour if rng.random() < variety.prior.same_colour else _sample_colour(rng, variety=variety)


def draw_scene(scene: Scene, *, variety: Variety) -> Image.Image:
    """Draw a scene as a square RGB image of the variety's side, edges smoothed by 2x supersampling."""
    side = variety.side_px * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), scene.background)
    pen = ImageDraw.Draw(image)
    for item in scene.objects:
        scale = item.radius_px * _SUPERSAMPLING
        centre_x, centre_y = (value * _SUPERSAMPLING for value in item.centre_px)
        outline = OUTLINES[item.kind]
        for part in outline.parts:
            points = [(centre_x + scale * x, centre_y + scale * y) for x, y in part]
            pen.polygon(points, fill=variety.colours[item.colour])
        if outline.hole is not None:
            x, y, radius = (scale * value for value in outline.hole)
            hole_x, hole_y = centre_x + x, centre_y + y
            corners = (hole_x - radius, hole_y - radius, hole_x + radius, hole_y + radius)
            pen.ellipse(corners, fill=scene.background)
    return image.reduce(_SUPERSAMPLING)


def truth_of(scene: Scene) -> list[dict[str, str]]:
    """Return what is in the scene as the records of truth.jsonl (kind, colour, place)."""
    return [{"kind": item.kind, "colour": item.colour, "place": item.place} for item in scene.objects]


def regions_of(scene: Scene) -> list[dict[str, Any]]:
    """Return where the things of a scene are: kinds as labels, and boxes [left, top, right, bottom] in pixels."""
    return [
        {
            "label": item.kind,
            "box": [
                round(side, 1)
                for side in (
                    item.centre_px[0] - item.radius_px,
                    item.centre_px[1] - item.radius_px,
                    item.centre_px[0] + item.radius_px,
                    item.centre_px[1] + item.radius_px,
                )
            ],
        }
        for item in scene.objects
    ]


def _sample_colour(rng: np.random.Generator, *, variety: Variety) -> str:
    names = tuple(variety.colours)
    return names[int(rng.integers(len(names)))]


def _place_object(rng: np.random.Generator, *, kind: str, colour: str, place: str, side_px: int) -> SceneObject:
    half = side_px / 2
    least_px, most_px = (side_px / _RADIUS_SIDE_PX * value for value in _RADIUS_PX)
    radius = float(rng.uniform(least_px, most_px))
    slack = half / 2 - radius - 1
    column, row = float(place.endswith("right")), float(place.startswith("bottom"))
    shift_x, shift_y = (float(value) for value in rng.uniform(-slack, slack, size=2))
    centre = (half * (column + 0.5) + shift_x, half * (row + 0.5) + shift_y)
    return SceneObject(kind=kind, colour=colour, place=place, centre_px=centre, radius_px=radius)
