"""The quirk of the released trainers of SIMA and STIC in ours, against plain forward passes: loss and gradients."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from fakes import preference_pair
from PIL import Image
from small_trainers import assert_same_gradients, computed, gradients, plain_logps, small_trainer
from tiny_models import FAMILIES
from training_examples import altered

from csr_ray.config.schema import Train
from csr_ray.records import Example
from csr_ray.training.collate import pair_rows

BETA = 0.2
TRAIN = Train(beta=BETA, reference="recompute", dtype="float32", rejected_logp="top1_or_2")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["llava"](tmp_path_factory.mktemp("llava") / "model", seed=0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    rng, folder, made = random.Random(0), tmp_path_factory.mktemp("pictures"), []
    for index in range(3):
        path = folder / f"{index}.png"
        Image.frombytes("RGB", (64, 48), rng.randbytes(3 * 64 * 48)).save(path)
        chosen, rejected = (tuple(rng.randrange(20, 300) for _ in range(num)) for num in (9 + 4 * index, 12))
        made.append(
            preference_pair(
                id=f"pair-{index}",
                image=str(path),
                prompt="Describe the image.",
                chosen_ids=chosen,
                rejected_ids=rejected,
            )
        )
    return made


def sums(trainer: object, pair: Example) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Log-prob of the chosen answer, the quirk's of the rejected one, and the tokens that it takes."""
    image = Image.open(pair.ask.picture.path).convert("RGB")
    chosen, rejected = pair.chosen.token_ids, pair.rejected.token_ids
    of_chosen = plain_logps(trainer, pair, answer=chosen, image=image)
    of_rejected = plain_logps(trainer, pair, answer=rejected, image=image)
    taken = []
    for place, label in enumerate(rejected):
        first, second = of_rejected[place].detach().argsort(descending=True)[:2].tolist()
        taken.append(second if first == label else first)
    return (
        of_chosen[torch.arange(len(chosen)), torch.tensor(chosen)].sum(),
        of_rejected[torch.arange(len(taken)), torch.tensor(taken)].sum(),
        taken,
    )


@pytest.mark.parametrize("form", ["shared_prefix", "concatenated"])
def test_rejected_places_count_with_the_likeliest_other_token(
    llava: Path, pairs: list[Example], tmp_path: Path, form: str
) -> None:
    trainer = small_trainer(llava, examples=pairs, directory=tmp_path, train=TRAIN, form=form)
    # An answer that the policy itself would have begun so: there its second token counts.
    *_, taken = sums(trainer, pairs[0])
    first = altered(pairs[0], rejected={"token_ids": (taken[0], *pairs[0].rejected.token_ids[1:])})
    pairs = [first, *pairs[1:]]
    assert sums(trainer, first)[2][0] != taken[0]

    loss, ours = computed(trainer, trainer.data_collator(pair_rows(pairs)))
    trainer.model.zero_grad()
    losses = []
    for pair in pairs:
        chosen, rejected, _ = sums(trainer, pair)
        with trainer.model.disable_adapter(), torch.no_grad():
            ref_chosen, ref_rejected, _ = sums(trainer, pair)
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        losses.append(-torch.nn.functional.logsigmoid(BETA * margin))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(ours, gradients(trainer))


def test_looks_at_pairs_are_at_their_own_tokens(llava: Path, pairs: list[Example], tmp_path: Path) -> None:
    trainer = small_trainer(llava, examples=pairs, directory=tmp_path, train=TRAIN)
    trainer.model_wrapped = trainer.model
    usual = small_trainer(
        llava, examples=pairs, directory=tmp_path, train=TRAIN.model_copy(update={"rejected_logp": "labels"})
    )
    usual.model_wrapped = usual.model
    assert trainer.sums_of_pairs(pairs) == usual.sums_of_pairs(pairs)
    of_loss, _ = computed(trainer, trainer.data_collator(pair_rows(pairs)))
    as_usual, _ = computed(usual, usual.data_collator(pair_rows(pairs)))
    assert of_loss != pytest.approx(as_usual, rel=1e-3)
