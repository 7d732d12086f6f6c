"""A round of DPO: TRL's trainer on our pairs, DeepSpeed under it, a PEFT adapter out of it.

Imports the whole training stack, so only train workers import it, after `actors.train_worker.prepare_process`. Knows
one process of the group and its collectives; knows nothing of Ray, mailboxes or the loop.
"""

from __future__ import annotations

import gc
import logging
import math
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import distributed
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from actors.dpo_settings import training_arguments
from csr_ray.collate import LoadImage, PairCollator, UsablePairs, pair_rows, usable_pairs
from csr_ray.config import Config
from csr_ray.errors import ConfigError
from csr_ray.images import load_image
from csr_ray.ports import OnStep
from csr_ray.types import PreferencePair, TrainResult
from csr_ray.weights import merged_by_module, publish_modes, replace_directory

_log = logging.getLogger(__name__)

_MAX_PROBES = 8
_REFERENCE_KEYS = ("ref_chosen_logps", "ref_rejected_logps")


class PlainCpuAccelerator(CPU_Accelerator):
    """DeepSpeed's CPU, minus the shared-memory all-reduce that it would compile for a minute at first use.

    That kernel serves inference; training over gloo never calls it.
    """

    def create_op_builder(self, op_name: str) -> Any:
        return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)


class RoundTrainer:
    """What one process of the group keeps from round to round: the processor and the policy to start from.

    All processes of the group make the same calls in the same order.
    """

    def __init__(self, config: Config, *, model: Path) -> None:
        self._config = config
        self._model = model
        _join_group(use_gpu=config.train.gpus_per_worker > 0)
        self._processor = AutoProcessor.from_pretrained(model)
        self._policy: PreTrainedModel | None = None
        self._policy_adapters: tuple[str, ...] = ()
        self._finished: PairTrainer | None = None
        # What the imports left behind lives for ever; without this each of the few collections a round asks for
        # walks through millions of objects for half a second.
        gc.collect()
        gc.freeze()

    def rehearse(self) -> None:
        """Train one made-up pair on a blank image and forget it.

        So the first round finds everything lazily loaded already there, and a configuration that cannot train fails
        before the first rollout, not after it.

        Raises:
            ConfigError: `train.lora_targets` names layers the model does not have.
        """
        end = self._processor.tokenizer.eos_token_id
        pair = PreferencePair(
            id="rehearsal",
            image="",
            prompt="",
            chosen="",
            rejected="",
            chosen_ids=(end,),
            rejected_ids=(end, end),
            chosen_logp=-1.0,
            rejected_logp=-2.0,
            chosen_reward=1.0,
            rejected_reward=0.0,
            chosen_nodes=(),
            rejected_nodes=(),
            policy_version=0,
            method="rehearsal",
            seed=0,
        )
        self.prepare(())
        trainer = self._new_trainer([pair], round_index=0, read_image=lambda _: Image.new("RGB", (64, 64)))
        trainer.train()
        trainer.chosen_logps([pair])
        with tempfile.TemporaryDirectory() as directory:
            save_adapter(trainer.model, output_dir=Path(directory) / "adapter")
        self._policy, self._finished = None, trainer

    def prepare(self, adapters: Sequence[str]) -> None:
        """Let go of the last round and load the policy that base and `adapters` make, so that `train` finds it ready.

        Raises:
            ConfigError: `train.lora_targets` names layers the model does not have.
        """
        self._policy, self._policy_adapters = None, tuple(adapters)
        if self._finished is not None:
            _release(self._finished)
            self._finished = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        dtype = getattr(torch, self._config.train.dtype)
        policy = load_policy(self._model, adapters=[Path(adapter) for adapter in adapters], dtype=dtype)
        lora_pattern(policy, targets=self._config.train.lora_targets)
        self._policy = policy

    def train(
        self,
        pairs: Sequence[PreferencePair],
        *,
        round_index: int,
        adapters: Sequence[str],
        output_dir: Path,
        on_step: OnStep,
    ) -> TrainResult:
        """One round. Every process returns the result; rank 0 has written the adapter.

        Raises:
            ValueError: no pair can be trained on.
            FloatingPointError: the loss is not a number; names the step and the pairs.
        """
        started = time.monotonic()
        if self._policy is None or tuple(adapters) != self._policy_adapters:
            self.prepare(adapters)
        usable = self._usable(pairs)
        if not usable.positions:
            raise ValueError(f"round {round_index}: none of {len(pairs)} pairs can be trained on: {usable.dropped}")
        trainer = self._new_trainer([pairs[position] for position in usable.positions], round_index=round_index)
        clock = _StepClock(on_step=on_step)
        trainer.add_callback(clock)
        trainer.train()
        engine = trainer.model_wrapped
        # accelerate falls back to plain data parallelism when one of its many conditions is not met.
        assert isinstance(engine, DeepSpeedEngine), type(engine)
        # The probe proves the hand-over for the pairs the LOOP knows, so it ends where one of them was left out.
        leading = [i for i, position in enumerate(usable.positions[:_MAX_PROBES]) if position == i]
        probe_logps = trainer.chosen_logps([pairs[i] for i in leading]) if leading else ()
        save_adapter(trainer.model, output_dir=output_dir)
        metrics = {**clock.last_logs, "deepspeed_stage": float(engine.zero_optimization_stage())}
        metrics |= {f"dropped/{reason}": float(count) for reason, count in usable.dropped.items()}
        self._policy, self._finished = None, trainer
        return TrainResult(
            adapter=str(output_dir),
            version=len(adapters) + 1,
            num_pairs=len(usable.positions),
            num_steps=len(clock.losses),
            seconds=time.monotonic() - started,
            optimizer_s=clock.seconds,
            loss_first=clock.losses[0],
            loss_last=clock.losses[-1],
            probe_logps=probe_logps,
            metrics=metrics,
        )

    def _usable(self, pairs: Sequence[PreferencePair]) -> UsablePairs:
        # Rank 0 decides for all: two processes that disagreed on one flaky file would train on different steps.
        decided: list[UsablePairs | None] = [None]
        if distributed.get_rank() == 0:
            max_length = self._config.train.max_length
            decided[0] = usable_pairs(pairs, processor=self._processor, load_image=load_image, max_length=max_length)
        distributed.broadcast_object_list(decided, src=0)
        assert decided[0] is not None
        return decided[0]

    def _new_trainer(
        self, pairs: Sequence[PreferencePair], *, round_index: int, read_image: LoadImage = load_image
    ) -> PairTrainer:
        train = self._config.train
        assert self._policy is not None
        num_steps = train.epochs * math.ceil(len(pairs) / train.batch_size)
        return PairTrainer(
            self._policy,
            args=training_arguments(train, seed=self._config.run.seed, round_index=round_index, num_steps=num_steps),
            pairs=pairs,
            reference=train.reference,
            collator=PairCollator(processor=self._processor, load_image=read_image),
            lora=LoraConfig(
                r=train.lora_rank,
                lora_alpha=train.lora_alpha,
                lora_dropout=0.0,
                target_modules=lora_pattern(self._policy, targets=train.lora_targets),
                task_type="CAUSAL_LM",
            ),
        )


class PairTrainer(DPOTrainer):
    """TRL's DPO trainer on batches of `PairCollator`."""

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        args: DPOConfig,
        pairs: Sequence[PreferencePair],
        reference: str,
        collator: PairCollator,
        lora: LoraConfig,
    ) -> None:
        super().__init__(
            policy,
            args=args,
            data_collator=collator,
            train_dataset=Dataset.from_list(pair_rows(pairs)),
            processing_class=collator.processor,
            peft_config=lora,
        )
        # The flag's documented route, `precompute_ref_log_probs`, is refused for vision data; the batch carries the
        # engine's own log-probs instead.
        self.precompute_ref_logps = reference == "rollout"
        self._pair_ids = [pair.id for pair in pairs]
        self._collator = collator
        self.remove_callback(PrinterCallback)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # The base class casts every float of the batch to the training dtype; in bfloat16 a reference of -80 nats
        # would be off by up to a quarter nat.
        kept = {key: inputs.pop(key).to(self.args.device) for key in _REFERENCE_KEYS}
        return {**super()._prepare_inputs(inputs), **kept}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        pair_index = inputs.pop("pair_index")
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not torch.isfinite(loss):
            ids = ", ".join(self._pair_ids[index] for index in pair_index.tolist())
            raise FloatingPointError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}; pairs of the batch: {ids}. "
                f"Lower train.learning_rate, or look at these pairs' log-probs"
            )
        return loss

    @torch.no_grad()
    def chosen_logps(self, pairs: Sequence[PreferencePair]) -> tuple[float, ...]:
        """Summed log-probs of the chosen answers under the policy as it is now, adapter on. All processes call it."""
        prompts = self._collator.prompts([(pair.image, pair.prompt) for pair in pairs])
        batch = self._collator.batch(prompts, answers=[pair.chosen_ids for pair in pairs])
        inputs = super()._prepare_inputs(batch)
        labels = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
        engine = self.model_wrapped
        engine.eval()
        logps = engine(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs
        engine.train()
        return tuple(logps.float().sum(dim=1).tolist())


class _StepClock(TrainerCallback):
    """Hands every step on, and times the loop from its first batch to its last update."""

    def __init__(self, *, on_step: OnStep) -> None:
        self.losses: list[float] = []
        self.last_logs: dict[str, float] = {}
        self.seconds = 0.0
        self._on_step = on_step
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return  # the summary after the last step
        self.seconds = time.monotonic() - self._started
        self.losses.append(float(logs["loss"]))
        self.last_logs = {key: float(value) for key, value in logs.items()}
        self._on_step(state.global_step, state.max_steps, self.losses[-1])


def load_policy(model: Path, *, adapters: Sequence[Path], dtype: torch.dtype) -> PreTrainedModel:
    """Base plus adapters, rounded once to the checkpoint's dtype as the generators have it, then cast to `dtype`."""
    policy = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
    with torch.no_grad():
        for _, module, tensor in merged_by_module(model, adapters=adapters):
            policy.get_parameter(f"{module}.weight").copy_(tensor)
    return policy


def lora_pattern(policy: torch.nn.Module, *, targets: Sequence[str]) -> str:
    """A regular expression that matches the target layers of the language model only, never the vision tower's.

    Raises:
        ConfigError: a target matches nothing there; lists the linear layers there are.
    """
    linear = [
        name
        for name, module in policy.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model" in name.split(".")
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    missing = [target for target in targets if target not in known]
    if missing or not targets:
        raise ConfigError(
            f"train.lora_targets = {list(targets)!r}: no linear layer of the language model is called "
            f"{', '.join(missing) or 'nothing'}; there are {', '.join(known) or 'none at all'}"
        )
    return rf".*\blanguage_model\..*\.({'|'.join(re.escape(target) for target in targets)})"


def save_adapter(model: PeftModel, *, output_dir: Path) -> None:
    """Write the adapter in PEFT's layout; the folder appears whole or not at all. All processes call it."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    is_sharded = any(hasattr(parameter, "ds_id") for parameter in trained.values())
    with deepspeed.zero.GatheredParameters(list(trained.values()), enabled=is_sharded):
        state = {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
    if distributed.get_rank() == 0:
        tensors = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
        config = model.peft_config["default"]
        config.inference_mode = True
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
        try:
            save_file(tensors, staging / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(str(staging))
            publish_modes(staging)
            replace_directory(staging, target=output_dir)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    distributed.barrier()  # nobody reports an adapter that is not there yet


def _join_group(*, use_gpu: bool) -> None:
    transformers.logging.set_verbosity_warning()
    if use_gpu:
        PartialState()
    else:
        set_accelerator(PlainCpuAccelerator())
        # Without the name of a backend accelerate takes several CPU processes for one.
        PartialState(backend="gloo")


def _release(trainer: PairTrainer) -> None:
    """Clear what accelerate, transformers and DeepSpeed keep in module globals; else the next round cannot start."""
    trainer.accelerator.free_memory()  # destroys the DeepSpeed engine, too
    unset_hf_deepspeed_config()
    AcceleratorState._reset_state()  # transformers' own way to a second Accelerator; the process group stays
    GradientState._reset_state()
