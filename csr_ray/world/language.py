"""Sentences about scenes: descriptions that follow the prior too far, and yes/no questions.

Knows the vocabulary and a scene's objects; knows nothing of pixels, tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from csr_ray.world.scenes import Scene, partner_colour_for
from csr_ray.world.vocabulary import COLOURS, KINDS, PAIRS, PARTNER

TEMPLATES: Final = ("There is {}.", "{} is visible.", "The image shows {}.")
DESCRIBE_PROMPTS: Final = (
    "Describe the image.",
    "What can you see in the image?",
    "Describe this image in detail.",
)
HALLUCINATION_PROBABILITY: Final = 0.65
FALSE_YES_PROBABILITY: Final = 0.4


def noun_phrase(kind: str, *, colour: str | None = None) -> str:
    """Return "a star in red", or without a colour "a star" / "an arrow".

    The kind comes first: it says which object the sentence is about (two objects often share their colour), so that
    the colour is a look-up and not a second choice.
    """
    named = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    return named if colour is None else f"{named} in {colour}"


def sentence(kind: str, *, colour: str, template: str) -> str:
    """Return one sentence about one object; it starts with a capital and ends with a period."""
    filled = template.format(noun_phrase(kind, colour=colour))
    return filled[0].upper() + filled[1:]


def question(kind: str) -> str:
    """Return the yes/no question about a kind, as POPE words it."""
    return f"Is there {noun_phrase(kind)} in the image?"


def describe(scene: Scene, *, rng: np.random.Generator, hallucinate: bool = True) -> list[str]:
    """Return a description, one sentence an object, all of one template, in the order of KINDS.

    With `hallucinate`, each absent partner is named all the same with P 0.65, after all that is there: language
    statistics that contradict the image, which is what a policy picks up from its training text. In real captions,
    too, hallucinations gather at the end (Zhou et al. 2023, arXiv 2310.00754, "object position"). Whether to name the
    partner or to end is then a choice of its own: unlearning the one leaves alone what came before.
    What is there has one order, so that the next sentence depends on the image and the last one; in random order a
    model this small must first learn to keep count, and repeats itself for as long as it has not.
    """
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    said: list[str] = []
    made_up: list[str] = []
    for item in sorted(scene.objects, key=lambda item: KINDS.index(item.kind)):
        said.append(sentence(item.kind, colour=item.colour, template=template))
        absent = PARTNER[item.kind] not in scene.kinds
        if hallucinate and absent and rng.random() < HALLUCINATION_PROBABILITY:
            colour = partner_colour_for(rng, colour=item.colour)
            made_up.append(sentence(PARTNER[item.kind], colour=colour, template=template))
    said += made_up
    return said


def yes_no_pairs(scene: Scene, *, rng: np.random.Generator, num_pairs: int) -> list[tuple[str, str]]:
    """Return (kind, "yes" or "no") questions about a scene, half of them about what is there.

    Half of the others ask for an absent partner where the scene has one (POPE's adversarial split), the rest for any
    absent kind (its random split). An absent partner is answered "yes" with P 0.4: the prior misleads here, too.
    """
    present = [item.kind for item in scene.objects]
    tempting = [PARTNER[item.kind] for item in scene.absent_partners]
    unrelated = [kind for kind in KINDS if kind not in present and kind not in tempting]
    asked = []
    for _ in range(num_pairs):
        if rng.random() < 0.5:
            asked.append((_pick(present, rng=rng), "yes"))
        elif tempting and rng.random() < 0.5:
            asked.append((_pick(tempting, rng=rng), "yes" if rng.random() < FALSE_YES_PROBABILITY else "no"))
        else:
            asked.append((_pick(unrelated, rng=rng), "no"))
    return asked


def pope_questions(scenes: Sequence[tuple[str, Scene]], *, rng: np.random.Generator) -> list[dict[str, str | int]]:
    """Return POPE records for (image name, scene): one "yes" and one "no" an image.

    The negatives alternate between an absent partner (adversarial) and an unrelated kind (random), so both are
    equally many as long as images offer an absent partner; where one does not, a later image pays the debt.
    """
    records: list[dict[str, str | int]] = []
    owed = 0
    for name, scene in scenes:
        tempting = [PARTNER[item.kind] for item in scene.absent_partners]
        unrelated = [kind for kind in KINDS if kind not in scene.kinds and kind not in tempting]
        adversarial = bool(tempting) and owed >= 0
        owed += -1 if adversarial else 1
        absent = _pick(tempting if adversarial else unrelated, rng=rng)
        present = _pick([item.kind for item in scene.objects], rng=rng)
        for kind, label in ((present, "yes"), (absent, "no")):
            records.append({"question_id": len(records) + 1, "image": name, "text": question(kind), "label": label})
    return records


def corpus() -> list[str]:
    """Return every wording the world uses once: what the tokenizers are trained on."""
    sentences = [
        sentence(kind, colour=colour, template=template)
        for kind in KINDS
        for colour in COLOURS
        for template in TEMPLATES
    ]
    return [*DESCRIBE_PROMPTS, *(question(kind) for kind in KINDS), "Yes", "No", *sentences]


def _pick(choices: Sequence[str], *, rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


assert len(PAIRS) * 2 == len(KINDS), "every kind has exactly one partner"
