"""Two views of one picture in the trainer against plain forward passes of transformers: loss and LoRA gradients."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from fakes import preference_pair
from PIL import Image
from small_trainers import assert_same_gradients, computed, gradients, plain_logps, small_trainer
from tiny_models import FAMILIES

from csr_ray.config.schema import Train
from csr_ray.records import Example
from csr_ray.training.collate import pair_rows

SIZES_PX = ((150, 62), (70, 170), (64, 64))
VIEW_WEIGHT, CONSISTENCY_WEIGHT = 0.7, 1.9
RELATIVE = 1e-4


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    rng, folder = random.Random(0), tmp_path_factory.mktemp("pictures")
    made = []
    for index, (width, height) in enumerate(SIZES_PX):
        path = folder / f"{index}.png"
        Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(path)
        pair = preference_pair(
            id=f"example-{index}",
            image=str(path),
            prompt=("Describe the image.", "Is there a green star? Say where, if so.")[index % 2],
            chosen_ids=tuple(rng.randrange(20, 300) for _ in range(9 + 4 * index)),
            rejected_ids=(3, 4),
        )
        answer = dataclasses.replace(pair.chosen, role="answer", logp=None)
        view = f"paint:{4 + index},6,40,{30 + index},ff0000;20,20,60,50,00ff80"
        made.append(dataclasses.replace(pair, targets=(answer,), view=view))
    return made


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "model", seed=0)


# As a phase of the method names it.
TRAIN = Train(dtype="float32", view_weight=VIEW_WEIGHT, consistency_weight=CONSISTENCY_WEIGHT).model_copy(
    update={"objective": "two_views"}
)


def _framed(example: Example) -> Image.Image:
    """The second view, drawn pixel by pixel."""
    image = Image.open(example.ask.picture.path).convert("RGB")
    width_px = max(1, round(min(image.size) / 32))
    for region in example.view.removeprefix("paint:").split(";"):
        *sides, colour = region.split(",")
        left, top, right, bottom = map(int, sides)
        rgb = tuple(bytes.fromhex(colour))
        for x in range(left, right):
            for y in range(top, bottom):
                is_frame = min(x - left, right - 1 - x, y - top, bottom - 1 - y) < width_px
                if is_frame and x < image.width and y < image.height:
                    image.putpixel((x, y), rgb)
    return image


@pytest.mark.parametrize("form", ["shared_prefix", "separate"])
def test_loss_and_gradients_are_those_of_plain_forward_passes(
    model: Path, examples: list[Example], tmp_path: Path, form: str
) -> None:
    trainer = small_trainer(model, examples=examples, directory=tmp_path, train=TRAIN, form=form, loss_type="sft")
    batch = trainer.data_collator(pair_rows(examples))
    assert sorted(batch["pair_index"]) == [0, 0, 1, 1, 2, 2]
    loss, ours = computed(trainer, batch)

    trainer.model.zero_grad()
    plain = painted = apart = torch.zeros(())
    for example in examples:
        answer = torch.tensor(example.preferred.token_ids)[:, None]
        image = Image.open(example.ask.picture.path).convert("RGB")
        seen = plain_logps(trainer, example, answer=example.preferred.token_ids, image=image)
        framed = plain_logps(trainer, example, answer=example.preferred.token_ids, image=_framed(example))
        plain = plain - seen.gather(1, answer).sum()
        painted = painted - framed.gather(1, answer).sum()
        apart = apart + torch.nn.functional.kl_div(seen, framed.detach(), log_target=True, reduction="sum")
    num_tokens = sum(len(example.preferred.token_ids) for example in examples)
    expected = (plain + VIEW_WEIGHT * painted + CONSISTENCY_WEIGHT * apart) / num_tokens
    expected.backward()
    assert float(apart) > 0, "the views differ"
    assert loss == pytest.approx(expected.item(), rel=RELATIVE)
    assert_same_gradients(ours, gradients(trainer))
    logged = trainer._metrics["train"]
    assert logged["views/divergence_a_token"] == [pytest.approx(float(apart) / num_tokens, rel=1e-3)]
    assert logged["views/painted_logp_a_token"] == [pytest.approx(-float(painted) / num_tokens, rel=1e-3)]
    assert logged["logps/chosen"] == [pytest.approx(-float(plain) / len(examples), rel=1e-3)]


def test_held_out_answers_are_looked_at_with_the_plain_picture(
    model: Path, examples: list[Example], tmp_path: Path
) -> None:
    trainer = small_trainer(model, examples=examples, directory=tmp_path, train=TRAIN, loss_type="sft")
    trainer.model_wrapped = trainer.model
    chosen, rejected = trainer.sums_of_pairs(examples)
    trainer.model.eval()
    with torch.no_grad():
        for example, logp in zip(examples, chosen, strict=True):
            image = Image.open(example.ask.picture.path).convert("RGB")
            logps = plain_logps(trainer, example, answer=example.preferred.token_ids, image=image)
            of_answer = logps.gather(1, torch.tensor(example.preferred.token_ids)[:, None])
            assert logp == pytest.approx(float(of_answer.sum()), rel=RELATIVE)
    assert rejected == []
