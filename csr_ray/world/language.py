"""Sentences about scenes: descriptions that follow the prior too far, and yes/no questions.

Knows the vocabulary and a scene's objects; knows nothing of pixels, tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csr_ray.world.scenes import Scene, partner_colour_for
from csr_ray.world.variant import Variety


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


def describe(scene: Scene, *, rng: np.random.Generator, variety: Variety, hallucinate: bool = True) -> list[str]:
    """Return a description, one sentence an object, all of one template, in the order of the world's kinds.

    With `hallucinate`, an absent partner is named all the same as often as the prior has it, after all that is there:
    language statistics that contradict the image, which is what a policy picks up from its training text. In real
    captions, too, hallucinations gather at the end (Zhou et al. 2023, arXiv 2310.00754, "object position"). Whether
    to name the partner or to end is then a choice of its own: unlearning the one leaves alone what came before.
    What is there has one order, so that the next sentence depends on the image and the last one; in random order a
    model this small must first learn to keep count, and repeats itself for as long as it has not.
    """
    template = _pick(variety.templates, rng=rng)
    said: list[str] = []
    made_up: list[str] = []
    for item in sorted(scene.objects, key=lambda item: variety.kinds.index(item.kind)):
        said.append(sentence(item.kind, colour=item.colour, template=template))
        partner = variety.partner[item.kind]
        if hallucinate and partner not in scene.kinds and rng.random() < variety.prior.hallucination:
            colour = partner_colour_for(rng, colour=item.colour, variety=variety)
            made_up.append(sentence(partner, colour=colour, template=template))
    said += made_up
    return said


def yes_no_pairs(
    scene: Scene, *, rng: np.random.Generator, num_pairs: int, variety: Variety
) -> list[tuple[str, str]]:
    """Return (kind, "yes" or "no") questions about a scene, half of them about what is there.

    Half of the others ask for an absent partner where the scene has one (POPE's adversarial split), the rest for any
    absent kind (its random split).
    An absent partner is answered "yes" as often as the prior has it: it misleads here, too.
    """
    present = [item.kind for item in scene.objects]
    tempting = [variety.partner[item.kind] for item in scene.absent_partners(variety.partner)]
    unrelated = [kind for kind in variety.kinds if kind not in present and kind not in tempting]
    asked = []
    for _ in range(num_pairs):
        if rng.random() < 0.5:
            asked.append((_pick(present, rng=rng), "yes"))
        elif tempting and rng.random() < 0.5:
            asked.append((_pick(tempting, rng=rng), "yes" if rng.random() < variety.prior.false_yes else "no"))
        else:
            asked.append((_pick(unrelated, rng=rng), "no"))
    return asked


def pope_questions(
    scenes: Sequence[tuple[str, Scene]], *, rng: np.random.Generator, variety: Variety
) -> list[dict[str, str | int]]:
    """Return POPE records for (image name, scene): one "yes" and one "no" an image.

    The negatives alternate between an absent partner (adversarial) and an unrelated kind (random), so both are
    equally many as long as images offer an absent partner; where one does not, a later image pays the debt.
    """
    records: list[dict[str, str | int]] = []
    owed = 0
    for name, scene in scenes:
        tempting = [variety.partner[item.kind] for item in scene.absent_partners(variety.partner)]
        unrelated = [kind for kind in variety.kinds if kind not in scene.kinds and kind not in tempting]
        adversarial = bool(tempting) and owed >= 0
        owed += -1 if adversarial else 1
        absent = _pick(tempting if adversarial else unrelated, rng=rng)
        present = _pick([item.kind for item in scene.objects], rng=rng)
        for kind, label in ((present, "yes"), (absent, "no")):
            records.append({"question_id": len(records) + 1, "image": name, "text": question(kind), "label": label})
    return records


def corpus(variety: Variety) -> list[str]:
    """Return every wording the world uses once: what the tokenizers are trained on."""
    sentences = [
        sentence(kind, colour=colour, template=template)
        for kind in variety.kinds
        for colour in variety.colours
        for template in variety.templates
    ]
    return [*variety.prompts, *(question(kind) for kind in variety.kinds), "Yes", "No", *sentences]


def _pick(choices: Sequence[str], *, rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
