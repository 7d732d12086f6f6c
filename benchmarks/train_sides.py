"""TRL's own DPO trainer and csr_ray's, on the same model and the same pairs; for the benchmarks.

Both without DeepSpeed. TRL's has its own collator and its own forward for the reference; ours takes one sequence a
pair and the engine's log-probs. Imports no Ray, so that it also runs on machines without.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from random_llava import TextPair, as_examples, picture

NUM_PROMPT_TOKENS = 30


@dataclass(frozen=True, kw_only=True)
class Side:
    """A trainer with its pairs.

    Attributes:
        trainer: a `DPOTrainer`, which has put the LoRA around the model.
        rows: the first so many pairs, as the trainer's collator takes them; makes the noise of their pictures anew.
        answer_tokens: of each pair, the tokens of the chosen and of the rejected answer, end token included.
    """

    trainer: Any
    rows: Callable[[int], list[Any]]
    answer_tokens: Sequence[tuple[int, int]]

    def batch(self, num_pairs: int) -> Any:
        """Collate the first so many pairs, which is a part of every step."""
        return self.trainer.data_collator(self.rows(num_pairs))


def trl_side(
    policy: Any, *, processor: Any, texts: Sequence[TextPair], side_px: int, settings: Any, lora: Any
) -> Side:
    """TRL's own. `settings` is a DPOConfig, `lora` a LoraConfig, `side_px` the pictures' width and height."""
    from datasets import Dataset
    from trl import DPOTrainer

    plain = [{"prompt": pair.prompt, "chosen": f" {pair.chosen}", "rejected": f" {pair.rejected}"} for pair in texts]
    trainer = DPOTrainer(
        policy,
        args=settings,
        train_dataset=Dataset.from_list([{**row, "image": "0"} for row in plain]),
        processing_class=processor,
        peft_config=lora,
    )

    def rows(num_pairs: int) -> list[Any]:
        return [{**row, "image": picture(index, side_px=side_px)} for index, row in enumerate(plain[:num_pairs])]

    return Side(trainer=trainer, rows=rows, answer_tokens=_answer_tokens(texts))


def our_side(
    policy: Any,
    *,
    processor: Any,
    texts: Sequence[TextPair],
    side_px: int,
    settings: Any,
    lora: Any,
    dtype: str = "float32",
    pack_tokens: int | None = None,
    use_flex: bool = False,
) -> Side:
    """csr_ray's, with the arguments of `trl_side`.

    Args:
        dtype: of `train.dtype`.
        pack_tokens: tokens of a row that several pairs share; None: a row a pair.
        use_flex: run FlexAttention in the language model; otherwise SDPA with a dense mask.
    """
    from actors.train.examples import HeldExamples
    from actors.train.pair_trainer import PairTrainer
    from actors.train.shared_step import FLEX_BLOCK, family_positions, set_flex
    from csr_ray.config.schema import Train
    from csr_ray.training.collate import SharedPrefixCollator, pair_rows

    images = [str(index) for index in range(len(texts))]
    pairs = as_examples(texts, images=images, tokenizer=processor.tokenizer)
    if use_flex:
        set_flex(policy, is_on=True)
    trainer = PairTrainer(
        policy,
        args=settings,
        train=Train.model_validate({"beta": settings.beta, "dtype": dtype}),
        examples=HeldExamples(pairs),
        collator=SharedPrefixCollator(
            processor=processor,
            load_picture=lambda named: picture(int(named.path), side_px=side_px),
            positions=family_positions(policy),
            budget=pack_tokens,
            multiple=FLEX_BLOCK if use_flex else 1,
        ),
        lora=lora,
        use_flex=use_flex,
    )
    return Side(trainer=trainer, rows=lambda num: pair_rows(pairs[:num]), answer_tokens=_answer_tokens(texts))


def settings_of(num_pairs: int, *, on_gpu: bool = False, autocast: bool = False) -> Any:
    """A DPOConfig for steps of so many pairs, without gradient checkpointing.

    Args:
        autocast: in bfloat16, which is what `bf16` of TRL's and transformers' trainers is.
    """
    from trl import DPOConfig

    return DPOConfig(
        output_dir=tempfile.gettempdir(),
        beta=0.1,
        per_device_train_batch_size=num_pairs,
        max_length=None,
        use_cpu=not on_gpu,
        bf16=autocast,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )


def lora_of(rank: int) -> Any:
    """A LoraConfig for every linear layer of the language model."""
    from peft import LoraConfig

    names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    targets = rf".*\blanguage_model\..*\.({names})"
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")


def _answer_tokens(texts: Sequence[TextPair]) -> list[tuple[int, int]]:
    return [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in texts]
