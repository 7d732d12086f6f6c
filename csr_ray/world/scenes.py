"""Sampling and drawing of scenes: up to four coloured shapes, one a quadrant, partners often together.

Knows the vocabulary and pixels; knows nothing of language or models. A scene carries its whole geometry, so drawing
is a pure function of it and the random generator is needed for sampling only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from csr_ray.world.vocabulary import COLOURS, KINDS, PAIRS, PARTNER, PLACES, mirrored_place

IMAGE_SIDE_PX: Final = 64
PARTNER_PROBABILITY: Final = 0.6
SAME_COLOUR_PROBABILITY: Final = 0.8
TWO_FAMILIES_PROBABILITY: Final = 0.5

_SUPERSAMPLING: Final = 2
_RADIUS_PX: Final = (9.0, 13.0)


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

    @property
    def absent_partners(self) -> tuple[SceneObject, ...]:
        """Objects whose partner kind is not in the scene: each one an opportunity to hallucinate."""
        return tuple(item for item in self.objects if PARTNER[item.kind] not in self.kinds)


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw one scene: one or two pair families, each in a row of its own, the partner present with P 0.6."""
    num_families = 2 if rng.random() < TWO_FAMILIES_PROBABILITY else 1
    families = rng.choice(len(PAIRS), size=num_families, replace=False)
    first_row = int(rng.integers(2))
    objects: list[SceneObject] = []
    for position, family in enumerate(families):
        row = (first_row + position) % 2
        place = PLACES[2 * row + int(rng.integers(2))]
        kind = PAIRS[int(family)][int(rng.integers(2))]
        colour = _sample_colour(rng)
        objects.append(_place_object(rng, kind=kind, colour=colour, place=place))
        if rng.random() < PARTNER_PROBABILITY:
            partner_colour = partner_colour_for(rng, colour=colour)
            partner_place = mirrored_place(place)
            objects.append(_place_object(rng, kind=PARTNER[kind], colour=partner_colour, place=partner_place))
    red, green, blue = (int(value) for value in rng.integers(218, 252, size=3))
    return Scene(objects=tuple(objects), background=(red, green, blue))


def partner_colour_for(rng: np.random.Generator, *, colour: str) -> str:
    """Return a partner's colour: the same with P 0.8, else any (it may be the same by chance)."""
    return colour if rng.random() < SAME_COLOUR_PROBABILITY else _sample_colour(rng)


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of 64x64 pixels, edges smoothed by 2x supersampling."""
    side = IMAGE_SIDE_PX * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), scene.background)
    pen = ImageDraw.Draw(image)
    for item in scene.objects:
        scale = item.radius_px * _SUPERSAMPLING
        centre_x, centre_y = (value * _SUPERSAMPLING for value in item.centre_px)
        outline = [(centre_x + scale * x, centre_y + scale * y) for x, y in _OUTLINES[item.kind]]
        pen.polygon(outline, fill=COLOURS[item.colour])
        if item.kind == "ring":
            hole = 0.55 * scale
            corners = (centre_x - hole, centre_y - hole, centre_x + hole, centre_y + hole)
            pen.ellipse(corners, fill=scene.background)
    return image.reduce(_SUPERSAMPLING)


def truth_of(scene: Scene) -> list[dict[str, str]]:
    """Return what is in the scene as the records of truth.jsonl (kind, colour, place)."""
    return [{"kind": item.kind, "colour": item.colour, "place": item.place} for item in scene.objects]


def _sample_colour(rng: np.random.Generator) -> str:
    return tuple(COLOURS)[int(rng.integers(len(COLOURS)))]


def _place_object(rng: np.random.Generator, *, kind: str, colour: str, place: str) -> SceneObject:
    half = IMAGE_SIDE_PX / 2
    radius = float(rng.uniform(*_RADIUS_PX))
    slack = half / 2 - radius - 1
    column, row = float(place.endswith("right")), float(place.startswith("bottom"))
    shift_x, shift_y = (float(value) for value in rng.uniform(-slack, slack, size=2))
    centre = (half * (column + 0.5) + shift_x, half * (row + 0.5) + shift_y)
    return SceneObject(kind=kind, colour=colour, place=place, centre_px=centre, radius_px=radius)


def _arc(start: float, stop: float, *, radius: float = 1.0, num_points: int = 28) -> list[tuple[float, float]]:
    angles = np.linspace(start, stop, num_points)
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        angle, radius = math.pi * (corner / 5 - 0.5), 1.0 if corner % 2 == 0 else 0.42
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * math.pi, 40)
    across = 16 * np.sin(angles) ** 3 / 17
    down = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 17
    return [(float(x), float(y)) for x, y in zip(across, down, strict=True)]


def _moon() -> list[tuple[float, float]]:
    outer = _arc(-0.4 * math.pi, -1.6 * math.pi)
    tip_x, tip_y = outer[0]
    # The inner edge is an arc through both tips, bulging to the left: a crescent open to the right.
    centre_x = tip_x + 0.25
    radius = math.hypot(tip_x - centre_x, tip_y)
    angle = math.atan2(-tip_y, tip_x - centre_x)
    inner = [(centre_x + x, y) for x, y in _arc(angle, 2 * math.pi - angle, radius=radius)]
    return outer + inner


def _cross(*, arm: float = 0.34) -> list[tuple[float, float]]:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


_OUTLINES: Final[dict[str, list[tuple[float, float]]]] = {
    "circle": _arc(0, 2 * math.pi, radius=0.95),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
    "star": _star(),
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
    "cross": _cross(),
    "ring": _arc(0, 2 * math.pi),
    "moon": _moon(),
    "arrow": [(-1, -0.28), (0.05, -0.28), (0.05, -0.8), (1, 0), (0.05, 0.8), (0.05, 0.28), (-1, 0.28)],
}

assert set(_OUTLINES) == set(KINDS)
