"""The outlines of all kinds, in a square from -1 to 1, y downwards. Pure geometry; knows nothing of scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from csr_ray.world.vocabulary import KIND_POOL

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Outline:
    """Polygons that are filled, and a round hole (centre x, centre y, radius) through which the background shows."""

    parts: tuple[Points, ...]
    hole: tuple[float, float, float] | None = None


def _arc(start: float, stop: float, *, radius: float = 1.0, num_points: int = 28) -> Points:
    angles = np.linspace(start, stop, num_points)
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _disc(x: float, y: float, *, across: float, down: float | None = None, part: float = 2.0) -> Points:
    """An ellipse about (x, y), or the upper `part` times pi of it."""
    tall = across if down is None else down
    return [(x + across * a, y - tall * b) for a, b in _arc(0, part * math.pi)]


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _star() -> Points:
    points = []
    for corner in range(10):
        angle, radius = math.pi * (corner / 5 - 0.5), 1.0 if corner % 2 == 0 else 0.42
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> Points:
    angles = np.linspace(0, 2 * math.pi, 40)
    across = 16 * np.sin(angles) ** 3 / 17
    down = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 17
    return [(float(x), float(y)) for x, y in zip(across, down, strict=True)]


def _moon() -> Points:
    outer = _arc(-0.4 * math.pi, -1.6 * math.pi)
    tip_x, tip_y = outer[0]
    # The inner edge is an arc through both tips, bulging to the left: a crescent open to the right.
    centre_x = tip_x + 0.25
    radius = math.hypot(tip_x - centre_x, tip_y)
    angle = math.atan2(-tip_y, tip_x - centre_x)
    inner = [(centre_x + x, y) for x, y in _arc(angle, 2 * math.pi - angle, radius=radius)]
    return outer + inner


def _cross(*, arm: float = 0.34) -> Points:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    points: Points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


def _leaf() -> Points:
    """Two arcs that meet in points at the lower left and the upper right."""
    half = [(t, 0.42 * math.cos(math.pi * t / 2)) for t in np.linspace(-1.0, 1.0, 20)]
    upright = [*half, *((x, -y) for x, y in reversed(half))]
    return [(float(x + y) * 0.95, float(y - x) * 0.95) for x, y in upright]


def _comb() -> Points:
    points: Points = [(-1.0, -0.65), (1.0, -0.65)]
    for tooth in range(4):
        right = 1.0 - tooth * 0.56
        points += [(right, 0.75), (right - 0.32, 0.75)]
        if tooth < 3:
            points += [(right - 0.32, -0.1), (right - 0.56, -0.1)]
    return points


OUTLINES: Final[dict[str, Outline]] = {
    "circle": Outline((_arc(0, 2 * math.pi, radius=0.95),)),
    "square": Outline(([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],)),
    "triangle": Outline(([(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],)),
    "star": Outline((_star(),)),
    "heart": Outline((_heart(),)),
    "diamond": Outline(([(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],)),
    "cross": Outline((_cross(),)),
    "ring": Outline((_arc(0, 2 * math.pi),), hole=(0.0, 0.0, 0.55)),
    "moon": Outline((_moon(),)),
    "arrow": Outline(([(-1, -0.28), (0.05, -0.28), (0.05, -0.8), (1, 0), (0.05, 0.8), (0.05, 0.28), (-1, 0.28)],)),
    "house": Outline(([(0, -1), (1, -0.15), (0.7, -0.15), (0.7, 0.9), (-0.7, 0.9), (-0.7, -0.15), (-1, -0.15)],)),
    "tree": Outline(
        (
            [(0, -1), (0.5, -0.35), (-0.5, -0.35)],
            [(0, -0.6), (0.8, 0.4), (-0.8, 0.4)],
            _box(-0.2, 0.4, 0.2, 1.0),
        )
    ),
    "fish": Outline((_disc(-0.25, 0.0, across=0.75, down=0.48), [(0.3, 0.0), (1.0, -0.62), (1.0, 0.62)])),
    "mug": Outline(
        (_disc(0.45, -0.05, across=0.55), _box(-0.95, -0.8, 0.4, 0.8)),
        hole=(0.64, -0.05, 0.2),
    ),
    "key": Outline(
        (
            _disc(-0.55, 0.0, across=0.47),
            _box(-0.2, -0.15, 1.0, 0.15),
            _box(0.78, 0.1, 1.0, 0.6),
            _box(0.36, 0.1, 0.58, 0.5),
        ),
        hole=(-0.55, 0.0, 0.2),
    ),
    "flag": Outline((_box(-0.85, -1.0, -0.6, 1.0), _box(-0.6, -0.95, 0.9, 0.1))),
    "boat": Outline(
        (
            [(-1.0, 0.4), (1.0, 0.4), (0.6, 0.95), (-0.6, 0.95)],
            _box(-0.12, -1.0, 0.1, 0.45),
            [(0.1, -0.95), (0.85, 0.2), (0.1, 0.2)],
        )
    ),
    "crown": Outline(([(-1, -0.7), (-0.5, 0.0), (0, -0.9), (0.5, 0.0), (1, -0.7), (0.8, 0.8), (-0.8, 0.8)],)),
    "bolt": Outline(([(0.25, -1), (-0.7, 0.2), (-0.1, 0.2), (-0.3, 1), (0.7, -0.3), (0.05, -0.3), (0.6, -1)],)),
    "mushroom": Outline((_disc(0.0, 0.1, across=1.0, down=1.0, part=1.0), _box(-0.28, 0.1, 0.28, 0.95))),
    "leaf": Outline((_leaf(),)),
    "hammer": Outline((_box(-0.85, -0.95, 0.85, -0.4), _box(-0.17, -0.4, 0.17, 1.0))),
    "comb": Outline((_comb(),)),
    "cloud": Outline(
        (
            _disc(-0.5, 0.2, across=0.5, down=0.42),
            _disc(0.5, 0.2, across=0.5, down=0.42),
            _disc(0.05, -0.15, across=0.5),
            _box(-0.5, 0.2, 0.5, 0.62),
        )
    ),
    "bow": Outline(([(-1, -0.75), (0, -0.12), (1, -0.75), (1, 0.75), (0, 0.12), (-1, 0.75)],)),
    "fan": Outline(
        ([(0.0, 0.85), *((1.35 * x, 0.85 + 1.75 * y) for x, y in _arc(-0.75 * math.pi, -0.25 * math.pi))],)
    ),
}

assert set(OUTLINES) == set(KIND_POOL)
