"""Makes captions and COCO annotations in miniature for a CHAIR synonym file, the same for the same file and seed.

Run outside the project as well, in front of the published scripts (tests/data/official_chair/README.md), so it needs
nothing but the standard library. Of the generator only `random()` is used, which is the same in every Python.

    python tests/chair_captions.py SYNONYMS FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEED = 15
NUM_TORN = 240
"""Captions of objects and marks of punctuation thrown together."""

SPECIAL = (
    "",
    " ",
    ".",
    "nothing to see here",
    "A train track runs past two train tracks and a train on the tracks.",
    "The toilet seat is up. A seat, too.",
    "The seat of the toilet beside a chair",
    "Toilet seats, toilets and seats",
    "A man with a bow tie and bow ties; ties and a tie.",
    "He slides to home plate, home plates and a plate.",
    "A hot dog, hot dogs, a hot-dog; it is hot. Dogs bark.",
    "A hot, dog and a HOT DOG",
    "a baby bird, an adult bear, a baby elephant and baby zebras with a baby",
    "A passenger jet, a passenger train, passenger trains, a passenger.",
    "a wine glass, wine glasses, a glass of wine",
    "Motor bikes, a motor cycle and an air plane, air planes",
    "a traffic light, traffic lights, a street light, a stop light, stop lights, a stop sign and stop signs",
    "Two fire hydrants. One fire hydrant. Parking meters; a parking meter!",
    "A suit case? Suit cases! sports balls, a sports ball",
    "a baseball bat, baseball bats, a baseball glove, baseball gloves and tennis rackets and a tennis racket",
    "cell phones, a cell phone, a mobile phone, mobile phones, a laptop computer and laptop computers",
    "Teddy bears, a teddy bear, hair driers, a hair drier, potted plants and a potted plant by a stove top oven",
    "an adult cub, a baby animal, an adult animal and cubs",
    "the dog's bed, the dogs' bed, the dog’s bed, 'dog' and \"dog\" and “dog” and ‘dog’",
    "dog-like, two-dog, dog/cat, dog_cat, dog--cat, dog - cat, dog – cat, dog—cat",
    "a **dog**, *cats*, `horse`, _cow_, #bus, dogs... and cats.. and cows…",
    "1. a dog\n2. a cat\n\n- a horse\n* a cow:a sheep,an elephant;a bear",
    "dogs.Cats. (horses.) [cows.] {sheep.} <bears.> zebras.\" giraffes.' birds.”",
    "dog,5 cats,horses 3:dogs 3,000 cows",
    "DOGS AND CATS, A Dog, a CAT",
    "a dog, a dog, dogs, a cat, a cat and a man, a woman, men, women, people, a person, a man",
    "buses and a bus, canoes and a canoe, vases and a vase, ties and a tie, pies and a pie, collies",
    "knives, a knife, mice, a mouse, geese, a goose, children, a child, oxen, an ox, calves, sheep, skis, a ski",
    "scissors, a pair of scissors, glasses, a glass, eyeglasses, dresses, couches, benches, sandwiches, boxes",
    "Tomatoes and potatoes, donuts, doughnuts, cookies, taxis, a taxi and police, policemen",
    "the dog'll run, the cats've run, a horse'd run, the dogs're here, isn't a cow, cannot see sheep",
    "Mr. Dog lives on a st. ave. with cats. J. K. horse",
    "   a   dog \t a\u00a0cat  ",
    "(dog) [cat] {horse} <cow> dog! cat? horse; cow: sheep & bear % zebra $ bird @ elephant",
    "naïve dogs, a café table, 狗 and a cat, a dog 🐕 and cats🐈",
)
_ONE = (
    "A {word} next to {other}.",
    "There is one {word} in the picture, near {other}",
    "In the middle, a big {word}; {other} behind it.",
    "The {word}'s place is left of {other}!",
    "{word} and {other} (and a {word})",
    "{other}. The {word} is red.",
    "“{word}”, {other}, and no {word}.",
)
_MANY = (
    "Two {word} stand by {other}.",
    "{word}, {word} and {other}",
    "Some {word}; many {word}. And {other}?",
    "Here are the {word}' places: {other}",
    "A group of {word}... {other}.",
)
_GLUE = (
    " ",
    " ",
    " ",
    " ",
    ", ",
    ". ",
    "; ",
    ": ",
    "-",
    "--",
    "/",
    "' ",
    "'s ",
    '" ',
    ' "',
    ") ",
    " (",
    "... ",
    "! ",
    "\n",
)
_FILLER = [
    "a",
    "the",
    "two",
    "of",
    "red",
    "small",
    "with",
    "and",
    "on",
    "in",
    "near",
    "hot",
    "baby",
    "toilet",
    "seat",
    "train",
    "track",
    "passenger",
    "wine",
    "home",
    "adult",
]

Case = dict[str, Any]
"""What one made set of captions is: `answers` {id: caption}, and `instances` and `captions` by split."""


def plural(name: str) -> str:
    """A plural that people write; not always the right one, which is as well."""
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("man"):
        return name[:-2] + "en"
    if name.endswith("fe"):
        return name[:-2] + "ves"
    if name.endswith("f"):
        return name[:-1] + "ves"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def make_case(lines: Sequence[str], *, seed: int = SEED) -> Case:
    """Make captions that name every synonym in the singular and the plural, and others, and what is in each image."""
    rng = random.Random(seed)

    def pick(options: Sequence[Any]) -> Any:
        return options[int(rng.random() * len(options))]

    table = [[name.strip() for name in line.strip().split(", ")] for line in lines if line.strip()]
    names = [name for row in table for name in row]
    class_of = {name: number for number, row in enumerate(table) for name in row}

    def some(form: str) -> str:
        return f"{pick(('a', 'the', 'one more', 'that'))} {form}"

    answers: list[tuple[str, set[int]]] = [(caption, set()) for caption in SPECIAL]
    for name in names:
        for forms, word in ((_ONE, name), (_MANY, plural(name))):
            other = pick(names)
            caption = pick(forms).format(word=word, other=some(other))
            caption = pick((caption, caption, caption, caption.upper(), caption.capitalize()))
            answers.append((caption, {class_of[name], class_of[other]}))
    for _ in range(NUM_TORN):
        parts = []
        for _ in range(3 + int(rng.random() * 12)):
            name = pick(names)
            parts += [pick((name, plural(name), pick(_FILLER), pick(_FILLER))), pick(_GLUE)]
        answers.append(("".join(parts), set()))

    categories = [
        {"supercategory": "thing", "id": 3 * number + 1, "name": row[0]} for number, row in enumerate(table)
    ]
    case: Case = {"answers": {}, "instances": {}, "captions": {}}
    for split in ("val", "train"):
        info = {"year": 2014, "description": "made"}
        case["instances"][split] = {
            "info": info,
            "licenses": [],
            "images": [],
            "annotations": [],
            "categories": categories,
        }
        case["captions"][split] = {"info": info, "licenses": [], "images": [], "annotations": []}
    number = 0
    for position, (caption, named) in enumerate([*answers, ("asked by nobody", set())]):
        image_id = 1000 + 7 * position
        split = pick(("val", "val", "train"))
        image = {"id": image_id, "file_name": f"COCO_{split}2014_{image_id:012d}.jpg", "height": 4, "width": 5}
        instances, references = case["instances"][split], case["captions"][split]
        instances["images"].append(image)
        references["images"].append(image)
        seen = [group for group in sorted(named) if rng.random() < 0.4] + [int(rng.random() * len(table))]
        for group in seen[: int(rng.random() * 4)]:
            number += 1
            row = {"segmentation": [[0, 0, 4, 0, 4, 3.5]], "area": 7.0, "iscrowd": 0, "image_id": image_id}
            instances["annotations"].append(
                {**row, "bbox": [0, 0, 4, 3.5], "category_id": 3 * group + 1, "id": number}
            )
        for _ in range(5):
            number += 1
            text = "A picture of something."
            if rng.random() < 0.3:
                name = pick(table[pick(sorted(named))]) if named and rng.random() < 0.5 else pick(names)
                text = (
                    f"{pick(('A', 'One'))} {name} and some {plural(pick(names)) if rng.random() < 0.2 else 'things'}."
                )
            references["annotations"].append({"image_id": image_id, "id": number, "caption": text})
        if position < len(answers):
            case["answers"][str(image_id)] = caption
    return case


def write_case(case: Case, folder: Path) -> None:
    """Write a case as the published scripts read it: `annotations/` and `answers.json`."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for kind in ("instances", "captions"):
        for split in ("val", "train"):
            (folder / "annotations" / f"{kind}_{split}2014.json").write_text(json.dumps(case[kind][split]))
    scores = dict.fromkeys(("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "CIDEr", "SPICE", "ROUGE_L"), 0.0)
    answers = {key: {"image_id": int(key), "caption": text, **scores} for key, text in case["answers"].items()}
    (folder / "answers.json").write_text(json.dumps({"overall": scores, "imgToEval": answers}))


if __name__ == "__main__":
    write_case(make_case(Path(sys.argv[1]).read_text("utf-8").splitlines()), Path(sys.argv[2]))
