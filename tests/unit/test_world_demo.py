"""The demo's world (variant 0) stays what it is, bit for bit: its pictures, its texts and its models' shapes.

The digests were taken from the program as it was before there were variants.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from csr_ray.world.data import draw, sample_scenes
from csr_ray.world.folder import write_heldout, write_train
from csr_ray.world.language import corpus
from csr_ray.world.models import CLIP_CONTEXT_LENGTH, new_policy, new_scorer
from csr_ray.world.rows import RowWriter
from csr_ray.world.tokenizer import clip_tokenizer, policy_tokenizer
from csr_ray.world.variant import DEMO, variety

FILES = {
    "heldout/prompts.jsonl": "2fd430518793602a",
    "heldout/questions.jsonl": "cb9e10b15c5b9fbd",
    "heldout/truth.jsonl": "4663929a0dc7917d",
    "train/prompts.jsonl": "74aa900654720394",
    "train/prompts_with_truth.jsonl": "a5a030d9d217ffa2",
}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def digest_of_json(content: object) -> str:
    return digest(json.dumps(content).encode())


def shapes(model: torch.nn.Module) -> list[tuple[str, list[int]]]:
    return sorted((name, list(tensor.shape)) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("seed", "split", "expected"),
    [
        (0, "heldout", "78b8ad8c449e9f9c"),
        (5, "train", "b01b5035683753fe"),
        (0, "clip", "58197d16d1a00b75"),
        (0, "policy", "1f241d29cc007ef8"),
    ],
)
def test_its_pictures_are_the_same(seed: int, split: str, expected: str) -> None:
    scenes = sample_scenes(seed, split=split, num=40, variety=DEMO)
    assert digest(draw(scenes, variety=DEMO).pixels.tobytes()) == expected


def test_its_prompts_truths_and_questions_are_the_same(tmp_path: Path) -> None:
    write_train(tmp_path / "train", seed=0, num_images=40, variety=DEMO)
    write_heldout(tmp_path / "heldout", seed=0, num_images=40, variety=DEMO)
    written = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.jsonl")}
    assert {name: digest(path.read_bytes()) for name, path in written.items()} == FILES


def test_its_tokens_and_training_rows_are_the_same() -> None:
    assert digest("\n".join(corpus(DEMO)).encode()) == "f499d1f9dcfd409c"
    tokenizer = policy_tokenizer(corpus(DEMO))
    assert digest_of_json(sorted(tokenizer.get_vocab().items())) == "d4153f1bfcdb8a00"
    scorers = clip_tokenizer(corpus(DEMO), context_length=CLIP_CONTEXT_LENGTH)
    assert digest_of_json(sorted(scorers.get_vocab().items())) == "b34a17f3b5560e99"
    scenes = sample_scenes(0, split="policy", num=8, variety=DEMO)
    writer = RowWriter(tokenizer, num_questions=1, variety=DEMO)
    rows = writer.rows(scenes, rng=np.random.default_rng([0, 2]))
    assert digest(rows.token_ids.numpy().tobytes()) == "274d6a83ac9d50d1"
    assert digest(rows.labels.numpy().tobytes()) == "12617442145e52f9"


def test_its_models_have_the_same_shapes() -> None:
    policy = new_policy(policy_tokenizer(corpus(DEMO)), variety=DEMO)
    scorer = new_scorer(clip_tokenizer(corpus(DEMO), context_length=CLIP_CONTEXT_LENGTH), variety=DEMO)
    assert digest_of_json(shapes(policy)) == "1ecf36ef9741fe57"
    assert digest_of_json(shapes(scorer)) == "500133e304e1f3da"


def test_its_models_train_for_as_long_as_they_did() -> None:
    assert variety(0) is DEMO
    assert (DEMO.clip_steps, DEMO.policy_steps) == (400, 560)
