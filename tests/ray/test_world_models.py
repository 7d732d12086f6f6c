"""The world's models as everybody else meets them: folders that transformers and open_clip load and that answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csr_ray.evaluation.world import describe_metrics
from csr_ray.world.build import WorldSpec, build_world
from csr_ray.world.data import draw, sample_scenes
from csr_ray.world.language import corpus
from csr_ray.world.mentions import mentioned_kinds, split_sentences
from csr_ray.world.models import new_policy
from csr_ray.world.optimizer import orthogonalised
from csr_ray.world.rows import NOT_TRAINED, RowWriter
from csr_ray.world.tokenizer import policy_tokenizer
from csr_ray.world.train_policy import Probes, batch_losses, patch_features
from csr_ray.world.training import to_pixels
from csr_ray.world.variant import DEMO

SPEC = replace(WorldSpec.quick(), seed=100)
NUM_IMAGES = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "quick"
    build_world(folder, spec=SPEC, progress=False)
    return folder


def answers(world: Path, *, prompts: list[str], images: list[str], max_new_tokens: int) -> list[str]:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(world / "policy")
    model = LlavaForConditionalGeneration.from_pretrained(world / "policy").eval()
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    pictures = [Image.open(world / "heldout" / name).convert("RGB") for name in images]
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_even_a_quick_policy_answers_in_whole_sentences(world: Path) -> None:
    prompts = rows(world / "heldout/prompts.jsonl")[:NUM_IMAGES]
    said = answers(
        world, prompts=[row["prompt"] for row in prompts], images=[row["image"] for row in prompts], max_new_tokens=64
    )
    whole = [text for text in said if text.strip().endswith(".") and 1 <= len(split_sentences(text)) <= 6]
    assert len(whole) >= 0.8 * len(said), said
    assert sum(bool(mentioned_kinds(text)) for text in said) >= 0.8 * len(said), said
    truth = {row["id"]: row["objects"] for row in rows(world / "heldout/truth.jsonl")}
    metrics = describe_metrics({row["id"]: text for row, text in zip(prompts, said, strict=True)}, truth=truth)
    assert 0.0 <= metrics["chair_s"] <= 1.0 and metrics["sentences"] >= 1.0


def test_questions_are_answered_yes_or_no(world: Path) -> None:
    questions = rows(world / "heldout/questions.jsonl")[:NUM_IMAGES]
    said = answers(
        world,
        prompts=[row["text"] for row in questions],
        images=[row["image"] for row in questions],
        max_new_tokens=4,
    )
    assert {text.strip() for text in said} <= {"Yes", "No"}


def test_open_clip_opens_the_scorer_and_it_looks_at_image_and_text(world: Path) -> None:
    import open_clip

    name = f"local-dir:{world / 'clip'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    texts = open_clip.get_tokenizer(name)(["There is a red star.", "There is a blue moon."])
    images = [Image.open(path) for path in sorted((world / "heldout/images").glob("*.png"))[:4]]
    pixels = torch.stack([preprocess(image) for image in images])
    with torch.inference_mode():
        scores = model.encode_image(pixels, normalize=True) @ model.encode_text(texts, normalize=True).T
    assert scores.shape == (4, 2)
    assert scores.std(dim=0).min() > 1e-3 and (scores[:, 0] - scores[:, 1]).abs().max() > 1e-2


def test_policy_weights_carry_the_names_that_serving_engines_expect(world: Path) -> None:
    from safetensors import safe_open

    with safe_open(world / "policy/model.safetensors", "pt") as file:
        tower = [name for name in file.keys() if name.startswith("vision_tower.")]  # noqa: SIM118
        dtypes = {file.get_tensor(name).dtype for name in tower}
    assert tower and all(name.startswith("vision_tower.vision_model.") for name in tower)
    assert dtypes == {torch.float32}


@pytest.mark.long
def test_the_same_spec_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    build_world(tmp_path / "again", spec=SPEC, progress=False)
    files = sorted(
        path.relative_to(world) for path in world.rglob("*") if path.is_file() and path.name != "world.json"
    )
    again = {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert set(files) | {Path("world.json")} == again
    for file in files:
        assert (world / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_training_computes_what_transformers_computes() -> None:
    """Several conversations in one row have the losses of each of them alone, in the libraries' own forward pass."""
    torch.manual_seed(0)
    tokenizer = policy_tokenizer(corpus(DEMO))
    policy = new_policy(tokenizer, variety=DEMO).eval()
    drawn = draw(sample_scenes(100, split="policy", num=3, variety=DEMO), variety=DEMO)
    batch = RowWriter(tokenizer, num_questions=2, variety=DEMO).rows(drawn.scenes, rng=np.random.default_rng(0))
    pixels = to_pixels(drawn, np.arange(3))
    image = policy.model.multi_modal_projector(patch_features(policy, pixels, dtype=torch.float32))
    probes = Probes(tokenizer, width=policy.config.text_config.hidden_size, variety=DEMO)
    ours = batch_losses(policy, batch, probes=probes, image=image, dtype=torch.float32)
    restarts = [at for at in range(1, len(batch.positions)) if batch.positions[at] < batch.positions[at - 1]]
    prefix = int(batch.positions[restarts[0]])
    parts = list(zip([prefix, *restarts], [*restarts, batch.token_ids.shape[1]], strict=True))
    assert len(parts) == 3
    losses: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for row in range(3):
        for start, stop in parts:
            ids = torch.cat([batch.token_ids[row, :prefix], batch.token_ids[row, start:stop]])
            labels = torch.cat([batch.labels[row, :prefix], batch.labels[row, start:stop]])
            kept = ids != tokenizer.pad_token_id
            with torch.inference_mode():
                logits = policy(input_ids=ids[kept][None], pixel_values=pixels[row : row + 1]).logits[0, :-1]
            said = torch.nn.functional.cross_entropy(logits, labels[kept][1:], reduction="none")
            losses[start == prefix].append(said[labels[kept][1:] != NOT_TRAINED])
    assert float(ours.description) == pytest.approx(float(torch.cat(losses[True]).mean()), rel=1e-5)
    assert float(ours.yes_no) == pytest.approx(float(torch.cat(losses[False]).sum() / 6), rel=1e-5)


def test_muon_makes_every_direction_equally_large() -> None:
    matrices = torch.randn(3, 48, 96, generator=torch.Generator().manual_seed(0))
    for given in (matrices, matrices.mT.contiguous()):
        values = torch.linalg.svdvals(orthogonalised(given))
        assert values.min() > 0.5 and values.max() < 1.3
