"""Runs of fakes that write the cards of their adapters and their model, and have something to give away."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from checked_runs import CheckedDriver
from fakes import FakeTrainer
from PIL import Image
from safetensors.torch import save_file
from test_loop import SUITE

from csr_ray.policy.weights import Rounding
from csr_ray.records import JsonDict, TrainResult
from csr_ray.report.cards import write_cards
from csr_ray.stages.state import RunState
from csr_ray.store.atomic import new_folder
from csr_ray.store.run_folder import CARD


class Described:
    """Beside a `Driver` in the bases of a class: its runs write cards.

    Attributes:
        dies_at: how often the cards are written before the process dies, instead of writing them; None: never.
    """

    config: Any
    dies_at: int | None = None

    def state(self) -> RunState:
        write = partial(write_cards, config=self.config)

        def write_or_die(state: RunState, *, has_model: bool) -> None:
            if self.dies_at == 0:
                raise KeyboardInterrupt
            self.dies_at = None if self.dies_at is None else self.dies_at - 1
            write(state, has_model=has_model)

        return replace(super().state(), write_cards=write_or_die)  # type: ignore[misc]


class DescribedDriver(Described, CheckedDriver):
    """In a folder, on questions that are evaluated."""

    suite = SUITE


def cards_in(folder: Path) -> dict[str, str]:
    """Every card below a run folder, by its name there."""
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in sorted(folder.rglob(CARD))}


class LoraTrainer(FakeTrainer):
    """Its adapters are small LoRAs of PEFT's form, of a layer that no model has."""

    def finish(self, *, on_step: Any) -> TrainResult:
        result = super().finish(on_step=on_step)
        folder = Path(result.adapter)
        version = float(result.version)
        save_file(
            {
                f"base_model.model.layer.lora_{part}.weight": torch.full(shape, version)
                for part, shape in (("A", (2, 3)), ("B", (4, 2)))
            },
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        settings = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "base_model_name_or_path": "/home/jane/models/base",
            "target_modules": ["layer"],
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return result


class PublishedDriver(DescribedDriver):
    """A run whose pictures are files, whose adapters are LoRAs, and whose model has some bytes to send."""

    has_pictures = True

    def __init__(self, directory: Path, *, num_prompts: int = 3, rounds: int = 2, unit: int = 2) -> None:
        super().__init__(directory, num_prompts=num_prompts, rounds=rounds, unit=unit)
        pictures = directory.parent / "jane"
        pictures.mkdir(exist_ok=True)
        self.prompts = [replace(prompt, image=str(pictures / prompt.image)) for prompt in self.prompts]
        for number, prompt in enumerate(self.prompts):
            Image.new("RGB", (8, 6), (number, 0, 0)).save(prompt.image)
        rows = [{"id": prompt.id, "image": prompt.image, "prompt": prompt.text} for prompt in self.prompts]
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, **trouble: Any) -> JsonDict:
        with (
            mock.patch("test_loop.FakeTrainer", LoraTrainer),
            mock.patch("csr_ray.policy.weights.save_merged", save_large_model),
        ):
            found: JsonDict = super().run(**trouble)
            return found


def save_large_model(base: object, *, adapters: Sequence[Path], output: Path, config_lines: object) -> Rounding:
    """A model folder with two and a half megabytes of weights, and a template that leaves out the first token."""
    with new_folder(output) as staging:
        data = random.Random(len(adapters)).randbytes(2_500_000)
        (staging / "model.safetensors").write_bytes(data)
        (staging / "config.json").write_text(json.dumps({"model_type": "llava"}))
        (staging / "more").mkdir()
        (staging / "more" / "notes.txt").write_text("of the base")
        (staging / "README.md").write_text("# the base's own card\n")
    return Rounding()
