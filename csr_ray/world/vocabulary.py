"""The words a world may use: the demo's own, and the pools that a variant draws its own from.

Pure constants; knows nothing of pixels, sentences or models. Every word of the pools is one that names one thing.
"""

from __future__ import annotations

from typing import Final

PLACES: Final = ("top left", "top right", "bottom left", "bottom right")

# The demo's (variant 0).
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 39, 40),
    "green": (34, 150, 60),
    "blue": (35, 85, 205),
    "yellow": (245, 200, 20),
    "purple": (150, 50, 175),
    "black": (25, 25, 25),
}
# Kinds that tend to appear together: the prior that makes a policy name what it does not see.
PAIRS: Final = (
    ("star", "moon"),
    ("circle", "cross"),
    ("square", "heart"),
    ("triangle", "ring"),
    ("diamond", "arrow"),
)
KINDS: Final = tuple(kind for pair in PAIRS for kind in pair)
TEMPLATES: Final = ("There is {}.", "{} is visible.", "The image shows {}.")
DESCRIBE_PROMPTS: Final = (
    "Describe the image.",
    "What can you see in the image?",
    "Describe this image in detail.",
)

# What a variant draws from. Its colours are moved a little, and two of one world are never near each other.
COLOUR_POOL: Final[dict[str, tuple[int, int, int]]] = {
    "crimson": (205, 25, 55),
    "orange": (245, 130, 25),
    "gold": (225, 175, 20),
    "lime": (125, 205, 30),
    "emerald": (15, 150, 85),
    "teal": (10, 130, 140),
    "azure": (40, 150, 240),
    "navy": (25, 35, 120),
    "violet": (135, 60, 200),
    "magenta": (225, 35, 170),
    "brown": (120, 70, 30),
    "gray": (125, 125, 130),
    "charcoal": (45, 45, 50),
    "salmon": (245, 125, 110),
}
KIND_POOL: Final = (
    *KINDS,
    "house",
    "tree",
    "fish",
    "mug",
    "key",
    "flag",
    "boat",
    "crown",
    "bolt",
    "mushroom",
    "leaf",
    "hammer",
    "comb",
    "cloud",
    "bow",
    "fan",
)
TEMPLATE_POOL: Final = (
    "I can see {}.",
    "You can see {} here.",
    "{} appears in the scene.",
    "The picture has {}.",
    "Here is {}.",
    "{} can be found.",
    "We find {} in it.",
    "This drawing contains {}.",
    "{} is drawn here.",
    "One notices {}.",
    "It shows {}.",
    "{} is part of it.",
    "Someone drew {}.",
    "The scene holds {}.",
)
PROMPT_POOL: Final = (
    "What is in this picture?",
    "Tell me what you see.",
    "List what is shown.",
    "What does the picture show?",
    "Name everything in the image.",
    "Give a description of the picture.",
    "What objects are there?",
    "Write down what is drawn.",
    "Look at the image and describe it.",
    "Please caption this image.",
    "Which things can be seen?",
    "Explain what the scene contains.",
)


def mirrored_place(place: str) -> str:
    """Return the place in the same row, other column ("top left" for "top right")."""
    row, column = place.split()
    return f"{row} {'right' if column == 'left' else 'left'}"
