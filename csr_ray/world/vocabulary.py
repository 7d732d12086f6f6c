"""The words of the world: kinds, colours, places and the fixed pairs of kinds that occur together.

Pure constants; knows nothing of pixels, sentences or models.
"""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (34, 150, 60),
    "blue": (35, 85, 205),
    "yellow": (245, 200, 20),
    "purple": (150, 50, 175),
    "black": (25, 25, 25),
}

PLACES: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")

# Kinds that tend to appear together: the prior that makes a policy name what it does not see.
PAIRS: tuple[tuple[str, str], ...] = (
    ("star", "moon"),
    ("circle", "cross"),
    ("square", "heart"),
    ("triangle", "ring"),
    ("diamond", "arrow"),
)

KINDS: tuple[str, ...] = tuple(kind for pair in PAIRS for kind in pair)

PARTNER: dict[str, str] = {first: second for first, second in PAIRS} | {second: first for first, second in PAIRS}


def mirrored_place(place: str) -> str:
    """Return the place in the same row, other column ("top left" for "top right")."""
    row, column = place.split()
    return f"{row} {'right' if column == 'left' else 'left'}"
