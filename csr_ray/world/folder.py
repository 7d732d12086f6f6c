"""The data half of a world folder: images, prompts, truth and questions, in the forms that users' data have.

Knows scenes and file forms; knows nothing of models or training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from csr_ray.world.data import sample_scenes, split_rng
from csr_ray.world.language import describe, pope_questions
from csr_ray.world.mentions import VOCABULARY_FILE
from csr_ray.world.scenes import Scene, draw_scene, regions_of, truth_of
from csr_ray.world.variant import Variety


def write_train(directory: Path, *, seed: int, num_images: int, variety: Variety) -> None:
    """Write images/ and prompts.jsonl: what the policy improves itself on. It has no truth.

    prompts_with_truth.jsonl has the same prompts with a true description each, for methods whose judge is shown one,
    and with the regions of the things that are there.
    """
    scenes = sample_scenes(seed, split="train", num=num_images, variety=variety)
    names = _write_images(directory, scenes=scenes, prefix="train", variety=variety)
    _write_prompts(directory, names=names, variety=variety)
    rng = split_rng(seed, split="truth", variety=variety)
    truths = [" ".join(describe(scene, rng=rng, variety=variety, hallucinate=False)) for scene in scenes]
    rows = [
        {**row, "truth": truth, "regions": regions_of(scene)}
        for row, truth, scene in zip(_prompt_rows(names, variety=variety), truths, scenes, strict=True)
    ]
    _write_jsonl(directory / "prompts_with_truth.jsonl", rows=rows)


def write_heldout(directory: Path, *, seed: int, num_images: int, variety: Variety) -> None:
    """Write images/, prompts.jsonl, truth.jsonl, questions.jsonl (POPE's form, two an image) and the kinds' names."""
    scenes = sample_scenes(seed, split="heldout", num=num_images, variety=variety)
    names = _write_images(directory, scenes=scenes, prefix="heldout", variety=variety)
    _write_prompts(directory, names=names, variety=variety)
    truth = [
        {"id": _id(name), "image": name, "objects": truth_of(scene)}
        for name, scene in zip(names, scenes, strict=True)
    ]
    _write_jsonl(directory / "truth.jsonl", rows=truth)
    rng = split_rng(seed, split="questions", variety=variety)
    questions = pope_questions(list(zip(names, scenes, strict=True)), rng=rng, variety=variety)
    _write_jsonl(directory / "questions.jsonl", rows=questions)
    # What the kinds of this world are called, for whoever marks answers about it.
    (directory / VOCABULARY_FILE).write_text(json.dumps({"kinds": variety.kinds}) + "\n", encoding="utf-8")


def _write_images(directory: Path, *, scenes: Sequence[Scene], prefix: str, variety: Variety) -> list[str]:
    """Draw the scenes; returns the paths relative to `directory`."""
    (directory / "images").mkdir(parents=True)
    names = [f"images/{prefix}_{index:05d}.png" for index in range(len(scenes))]
    for name, scene in zip(names, scenes, strict=True):
        draw_scene(scene, variety=variety).save(directory / name)
    return names


def _write_prompts(directory: Path, *, names: list[str], variety: Variety) -> None:
    _write_jsonl(directory / "prompts.jsonl", rows=_prompt_rows(names, variety=variety))


def _prompt_rows(names: Sequence[str], *, variety: Variety) -> list[dict[str, Any]]:
    return [
        {"id": _id(name), "image": name, "prompt": variety.prompts[index % len(variety.prompts)]}
        for index, name in enumerate(names)
    ]


def _id(name: str) -> str:
    return Path(name).stem


def _write_jsonl(path: Path, *, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
