"""Two views of one picture in the trainer against plain forward passes of transformers: loss and LoRA gradients."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import preference_pair
from PIL import Image
from tiny_models import FAMILIES

from csr_ray.config.schema import Train
from csr_ray.data.pictures import load_picture
from csr_ray.records import Example
from csr_ray.training.collate import PairCollator, SharedPrefixCollator, pair_rows

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


def _trainer(model: Path, *, examples: list[Example], directory: Path, form: str) -> Any:
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig

    from actors.train.examples import HeldExamples
    from actors.train.pair_trainer import PairTrainer
    from actors.train.shared_step import family_positions

    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(model)
    collator = PairCollator(processor=processor, load_picture=load_picture)
    if form == "shared_prefix":
        collator = SharedPrefixCollator(
            processor=processor, load_picture=load_picture, positions=family_positions(policy), budget=4096
        )
    torch.manual_seed(1)
    targets = r".*\blanguage_model\..*\.(q_proj|v_proj|o_proj|down_proj)"
    return PairTrainer(
        policy,
        args=DPOConfig(
            output_dir=str(directory),
            loss_type=["sft"],
            per_device_train_batch_size=8,
            max_length=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            report_to=[],
        ),
        train=Train(
            objective="two_views",
            dtype="float32",
            view_weight=VIEW_WEIGHT,
            consistency_weight=CONSISTENCY_WEIGHT,
        ),
        examples=HeldExamples(examples),
        collator=collator,
        # Not at zero, so that every layer of it has a gradient.
        lora=LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"),
    )


def _logits(policy: Any, processor: Any, example: Example, *, image: Image.Image) -> torch.Tensor:
    """[A, V] at the places of the answer, by a sequence of its own."""
    content = [{"type": "image"}, {"type": "text", "text": example.ask.text}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=image, return_tensors="pt")
    answer = torch.tensor([example.preferred.token_ids])
    num_asked = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    for key in ("attention_mask", "mm_token_type_ids"):
        if key in inputs:
            fill = torch.ones_like(answer) if key == "attention_mask" else torch.zeros_like(answer)
            inputs[key] = torch.cat([inputs[key], fill.to(inputs[key].dtype)], dim=1)
    return policy(**inputs).logits[0, num_asked - 1 : -1].float()


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
    trainer = _trainer(model, examples=examples, directory=tmp_path, form=form)
    trained = {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}
    trainer.model.train()
    trainer.model.zero_grad()
    batch = trainer._prepare_inputs(trainer.data_collator(pair_rows(examples)))
    assert sorted(batch["pair_index"]) == [0, 0, 1, 1, 2, 2]
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    ours = {name: one.grad.clone() for name, one in trained.items()}

    trainer.model.zero_grad()
    plain = painted = apart = torch.zeros(())
    for example in examples:
        answer = torch.tensor(example.preferred.token_ids)[:, None]
        image = Image.open(example.ask.picture.path).convert("RGB")
        seen = _logits(trainer.model, trainer.processing_class, example, image=image).log_softmax(dim=-1)
        framed = _logits(trainer.model, trainer.processing_class, example, image=_framed(example))
        framed = framed.log_softmax(dim=-1)
        plain = plain - seen.gather(1, answer).sum()
        painted = painted - framed.gather(1, answer).sum()
        apart = apart + torch.nn.functional.kl_div(seen, framed.detach(), log_target=True, reduction="sum")
    num_tokens = sum(len(example.preferred.token_ids) for example in examples)
    expected = (plain + VIEW_WEIGHT * painted + CONSISTENCY_WEIGHT * apart) / num_tokens
    expected.backward()
    assert float(apart) > 0, "the views differ"
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
    for name, one in trained.items():
        assert torch.allclose(ours[name], one.grad, rtol=1e-3, atol=1e-6 + 1e-4 * float(one.grad.abs().max())), name
    logged = trainer._metrics["train"]
    assert logged["views/divergence_a_token"] == [pytest.approx(float(apart) / num_tokens, rel=1e-3)]
    assert logged["views/painted_logp_a_token"] == [pytest.approx(-float(painted) / num_tokens, rel=1e-3)]
    assert logged["logps/chosen"] == [pytest.approx(-float(plain) / len(examples), rel=1e-3)]


def test_held_out_answers_are_looked_at_with_the_plain_picture(
    model: Path, examples: list[Example], tmp_path: Path
) -> None:
    trainer = _trainer(model, examples=examples, directory=tmp_path, form="shared_prefix")
    trainer.model_wrapped = trainer.model
    chosen, rejected = trainer.sums_of_pairs(examples)
    trainer.model.eval()
    with torch.no_grad():
        for example, logp in zip(examples, chosen, strict=True):
            image = Image.open(example.ask.picture.path).convert("RGB")
            logits = _logits(trainer.model, trainer.processing_class, example, image=image)
            of_answer = logits.log_softmax(dim=-1).gather(1, torch.tensor(example.preferred.token_ids)[:, None])
            assert logp == pytest.approx(float(of_answer.sum()), rel=RELATIVE)
    assert rejected == []
