"""TRL's DPO trainer on our examples: on their token ids, with their reference log-probs, and one sequence a pair.

TRL keeps the optimizer loop, the losses it has, logging and DeepSpeed. Four things are added: the batch
(`csr_ray.training.collate`), the forward pass (`actors.train.shared_step`), the reference (the engine's own
log-probs) and the objectives that TRL lacks (`csr_ray.training.objectives`). TRL's loss is one of pairs; of examples
with a single answer the whole loss is ours. Imports the training stack, of which
DeepSpeed only where its files or shards are (`actors.train.shards`). Knows one process of the group; knows no cycles.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from actors.train.checkpoints import CheckpointFolder, Progress
from actors.train.examples import ArrivalSampler, ExampleStream, HeldExamples
from actors.train.loader import AheadLoader
from actors.train.noisy_step import NoisyForward
from actors.train.other_tokens_step import OtherTokensForward
from actors.train.shared_step import Recording, SharedPrefixForward, keep_only_sources, shared_inputs
from actors.train.view_step import two_views
from csr_ray.config.schema import Train
from csr_ray.errors import ReferenceGapError
from csr_ray.ports import OnStep
from csr_ray.records import Ask, Example
from csr_ray.training.collate import PairCollator, pair_rows
from csr_ray.training.dose import Dose
from csr_ray.training.noise import NoisyCollator
from csr_ray.training.objectives import (
    dpo_loss,
    dpo_positive_loss,
    nll_loss,
    sft_loss,
    two_rejected_dpo_loss,
    two_views_loss,
    weighted_sft_loss,
)
from csr_ray.training.views import TwoViewCollator, answer_sources, answer_targets

# What TRL's DPO loss and metrics read of the head.
_HEAD_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
_REFERENCE_KEYS = ("ref_chosen_logps", "ref_rejected_logps")
_WEIGHTS = "weights"  # a batch of single answers has them in the place of references
_NOISE = "noise"  # what a batch of `train.objective = dpo_noise` has besides
_REFERENCE_OF_NOISE = "ref_noisy_logps"
_VIEWS = "views"  # and one of `train.objective = two_views`
_NOT_FOR_THE_MODEL = ("completion_mask", "shared", _WEIGHTS, _NOISE, _REFERENCE_OF_NOISE, _VIEWS, *_REFERENCE_KEYS)
_KEPT_WEIGHTS = "csr_ray_kept.safetensors"
_NLL_TERM = "loss_nll"  # what the chosen answers' NLL adds to the loss


class PairTrainer(DPOTrainer):
    """TRL's DPO trainer on batches of `collator`; a `SharedPrefixCollator` makes it the shared-prefix step.

    Args:
        train: objective, reference and their settings.
        examples: what is trained on; at least one is there already.
        lora: the adapter that is trained.
        use_flex: the policy's language model runs FlexAttention (`actors.train.shared_step.set_flex`).
        loader_threads: if there are any, batches are made ahead (`actors.train.loader`).
        checkpoints: where checkpoints go; None: none is written.
        training: `actors.train.checkpoints.training_key`.
        dose: its `factor` multiplies the learning rate of every step; None: nothing does.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        args: DPOConfig,
        train: Train,
        examples: ExampleStream | HeldExamples,
        collator: PairCollator,
        lora: LoraConfig,
        use_flex: bool = False,
        loader_threads: int = 0,
        checkpoints: CheckpointFolder | None = None,
        training: str = "",
        dose: Dose | None = None,
    ) -> None:
        self._dose = dose
        self._train = train
        self._passes = 0  # over the examples that have ended
        self._noise_seed = args.seed
        self._kept: dict[str, torch.Tensor] | None = None
        super().__init__(
            policy,
            args=args,
            data_collator=self._training_collator(collator),
            train_dataset=Dataset.from_list([examples[0]]),
            processing_class=collator.processor,
            peft_config=lora,
        )
        # TRL accepts only `datasets.Dataset`, of which it looks at the first row's keys.
        self.train_dataset = examples
        # The flag's documented route, `precompute_ref_log_probs`, is refused for vision data; the batch carries the
        # reference instead: the engine's own log-probs, or those of a second forward of ours.
        self.precompute_ref_logps = True
        self.reference_gaps: list[float] = []
        self._examples = examples
        self._collator = collator
        self.use_flex = use_flex
        self._loader_threads = loader_threads
        self._checkpoints = checkpoints
        self._training = training
        self._loader: AheadLoader | None = None
        self._step_losses: list[tuple[torch.Tensor, torch.Tensor, Sequence[int]]] = []
        keep_only_sources(policy)
        # TRL has given the policy this head already, with logits in the policy's dtype. As the engine's, ours are in
        # float32: between 16 and 32 bfloat16 has steps of 0.125.
        add_fused_lm_head(self.model.get_base_model(), cast_lm_head_to_fp32=True, outputs=_HEAD_OUTPUTS)
        self.remove_callback(PrinterCallback)

    def _training_collator(self, collator: PairCollator) -> Callable[..., dict[str, Any]]:
        """What makes the batches that are trained on; looks at pairs (`sums_of_pairs`) need the plain ones."""
        if self._train.objective == "two_views":
            return TwoViewCollator(collator)
        if self._train.objective != "dpo_noise":
            return collator
        assert self._train.reference == "recompute", (
            "no engine has a log-prob of what a noisy picture would have it say"
        )
        return NoisyCollator(
            collator,
            step=self._train.noise_step,
            overflow=self._train.noise_overflow,
            seed=self._noise_seed,
            passes=lambda: self._passes,
        )

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        self._passes = epoch
        super()._run_epoch(epoch=epoch, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if (dose := self._dose) is not None:
            assert isinstance(scheduler, LambdaLR), type(scheduler)
            # Plain functions, of which a checkpoint keeps nothing: the dose finds its factor again by itself.
            scheduler.lr_lambdas = [
                lambda step, course=course: course(step) * dose.factor for course in scheduler.lr_lambdas
            ]
        return scheduler

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: TRL would write a model card into every checkpoint, and nobody publishes those."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let transformers and DeepSpeed write into a folder that gets its name when all of it is there."""
        from actors.train.shards import PlainCheckpointEngine

        assert self._checkpoints is not None and isinstance(self._examples, ExampleStream)
        is_first = distributed.get_rank() == 0
        self._checkpoints.begin(is_first=is_first)
        distributed.barrier()
        self.model_wrapped.checkpoint_engine = PlainCheckpointEngine()
        with self._checkpoints.writing():
            super()._save_checkpoint(model, trial)
            if is_first and self._kept is not None:
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                save_file(self._kept, folder / _KEPT_WEIGHTS)
        distributed.barrier()
        self._checkpoints.hand_in()
        distributed.barrier()
        if is_first:
            progress = Progress(
                training=self._training,
                step=self.state.global_step,
                is_growing=self._examples.is_growing,
                num_planned=len(self._examples),
            )
            self._checkpoints.commit(progress, example_keys=self._examples.keys())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Do nothing: a checkpoint has the LoRA in DeepSpeed's files, and the base model is elsewhere."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            from actors.train.shards import PlainCheckpointEngine

            # The base class does the same, but with DeepSpeed's own reader, which runs whatever code a pickle names.
            self.model_wrapped.checkpoint_engine = PlainCheckpointEngine()
            deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            kept = Path(resume_from_checkpoint) / _KEPT_WEIGHTS
            self._kept = load_file(kept) if kept.is_file() else None
        return prepared

    def keep_weights(self) -> None:
        """Remember the adapter as it is now; `take_kept_weights` brings it back. All processes call it."""
        from actors.train.shards import trained_weights

        self._kept = trained_weights(self.model)

    def take_kept_weights(self) -> None:
        """Make the adapter what it was at the last `keep_weights`. Nothing can be trained after it.

        All processes call it.
        """
        from actors.train.shards import gathered

        assert self._kept is not None
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        with gathered(trained.values(), is_changed=True), torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(self._kept[name])

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        # The base class counts epochs by the planned length of one, which a stream may not reach.
        epochs, steps = super()._init_training_state(*args, **kwargs)
        if not self._examples.is_growing or not self.state.global_step:
            return epochs, steps
        assert self.state.epoch is not None
        epochs = int(self.state.epoch)
        num_batches = len(self.get_train_dataloader())
        return epochs, round((self.state.epoch - epochs) * num_batches)

    @property
    def waited_for_batches_s(self) -> float | None:
        """Seconds that training waited for batches; None where they are not made ahead."""
        return None if self._loader is None else self._loader.waited_s

    def get_train_dataloader(self) -> Any:
        # accelerate has put its own loader around torch's: it moves batches to the device and sees the last one.
        shard = super().get_train_dataloader()
        if self._loader_threads:
            self._loader = shard.base_dataloader = AheadLoader(shard.base_dataloader)
        return shard

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if isinstance(self._examples, ExampleStream) and self._examples.is_growing:
            return ArrivalSampler(self._examples, seed=self.args.seed)
        return super()._get_train_sampler(train_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list, Any]:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._examples.is_growing and 0 < len(batches) < num_batches:
            # The base class finds a step's last micro-batch by the length of the data set, which a stream may not
            # reach. The micro-batches that are there are repeated for the missing ones: the gradient is their mean.
            batches = [dict(batch) for batch in itertools.islice(itertools.cycle(batches), num_batches)]
        return batches, num_items

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # The base class casts every float of the batch to the training dtype; in bfloat16 a reference of -80 nats
        # would be off by up to a quarter nat.
        kept = {key: inputs.pop(key).to(self.args.device) for key in (*_REFERENCE_KEYS, _WEIGHTS) if key in inputs}
        return {**super()._prepare_inputs(inputs), **kept}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        pair_index = inputs.pop("pair_index")
        if _VIEWS in inputs:
            loss = self._two_views_loss(model, inputs=inputs)
            self._look_at_losses(loss, nll=torch.zeros_like(loss), pair_index=pair_index)
            return loss
        forward, inputs = self._loss_forward(model, inputs=inputs)
        if _WEIGHTS in inputs:
            loss = self._imitation_loss(forward, inputs=inputs)
            self._look_at_losses(loss, nll=torch.zeros_like(loss), pair_index=pair_index)
            return loss
        self._set_reference(forward, inputs=inputs, pair_index=pair_index)
        of_noise = inputs.pop(_REFERENCE_OF_NOISE, None)
        loss = super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)
        if of_noise is not None:
            loss = self._noise_loss(forward, inputs=inputs, reference=of_noise)
        loss, nll = self._objective(loss, log_probs=forward.log_probs, inputs=inputs)
        self._look_at_losses(loss, nll=nll, pair_index=pair_index)
        return loss

    def _look_at_losses(self, loss: torch.Tensor, *, nll: torch.Tensor, pair_index: Sequence[int]) -> None:
        """Look at the losses of a whole step at once, before its update: each look waits for the GPU."""
        self._step_losses.append((loss.detach(), nll.detach(), pair_index))
        if not self.accelerator.sync_gradients:
            return  # more micro-batches of this step will come
        of_step, self._step_losses = self._step_losses, []
        losses = torch.stack([loss for loss, _, _ in of_step])
        nll = torch.stack([nll for _, nll, _ in of_step]).mean()
        if self._train.nll_weight:
            nll = self.accelerator.reduce(nll, reduction="mean")
            self._metrics["train"][_NLL_TERM].append(nll.item())
        for number, (_, _, pair_index) in zip(losses.tolist(), of_step, strict=True):
            if not math.isfinite(number):
                ids = ", ".join(self._examples.example(index).id for index in pair_index)
                raise FloatingPointError(
                    f"step {self.state.global_step + 1}: the loss is {number}; pairs of the batch: {ids}. "
                    f"Lower train.learning_rate, or look at these pairs' log-probs"
                )

    def _loss_forward(self, model: Any, *, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """`_forward`, but with the rejected tokens that the loss is to have; looks at pairs are at their own."""
        if self._train.rejected_logp == "labels" or _WEIGHTS in inputs or _NOISE in inputs:
            return self._forward(model, inputs=inputs)
        chosen_mask = inputs["completion_mask"].chunk(2)[0]
        forward = OtherTokensForward(
            model,
            inputs=self._model_inputs(inputs),
            sources=answer_sources(inputs),
            targets=answer_targets(inputs),
            num_chosen=int(chosen_mask.sum()),
        )
        return forward, {key: value for key, value in inputs.items() if key != "shared"}

    def _forward(self, model: Any, *, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The stand-in that TRL's loss calls as its model, and the batch without the keys that TRL does not know."""
        shared, noise = inputs.get("shared"), inputs.get(_NOISE)
        rest = {key: value for key, value in inputs.items() if key not in ("shared", _NOISE)}
        if noise is not None:
            return self._noisy_forward(model, inputs=inputs), rest
        if shared is None:
            return Recording(model), rest
        return SharedPrefixForward(model, shared=shared, use_flex=self.use_flex), rest

    def _noisy_forward(self, model: Any, *, inputs: Mapping[str, Any]) -> NoisyForward:
        noise, clean = inputs[_NOISE], self._model_inputs(inputs)
        if "shared" in inputs:
            noisy = {**clean, **noise["images"]}
        else:
            num_pairs = len(clean["input_ids"]) // 2  # the rejected rows have no part in it
            of_tokens = {key: value[:num_pairs] for key, value in clean.items() if key not in noise["images"]}
            noisy = {**of_tokens, **noise["images"]}
        return NoisyForward(model, inputs=clean, noisy=noisy, noise=noise, collision=self._train.noise_collision)

    def _model_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model gets of a batch, in either form of the step, but for what is asked of it."""
        if "shared" in inputs:
            return shared_inputs(inputs["shared"], use_flex=self.use_flex)
        return {key: value for key, value in inputs.items() if key not in _NOT_FOR_THE_MODEL}

    def _set_reference(self, forward: Any, *, inputs: dict[str, Any], pair_index: Sequence[int]) -> None:
        """As `train.reference` says, put a recomputed reference into the batch or compare it with the one there."""
        reference = self._train.reference
        is_sampled = reference == "check" and len(self.reference_gaps) < 2 * self._train.reference_sample
        if reference != "recompute" and not is_sampled:
            return
        with self._reference_policy(), torch.no_grad():
            chosen, rejected = self._sums(forward, inputs=inputs).chunk(2)
        if reference == "recompute":
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = chosen, rejected
            if isinstance(forward, NoisyForward):
                inputs[_REFERENCE_OF_NOISE] = forward.noisy_logps
            return
        num_tokens = inputs["completion_mask"].sum(dim=1)
        given = torch.cat([inputs[key] for key in _REFERENCE_KEYS])
        gaps = ((torch.cat([chosen, rejected]) - given).abs() / num_tokens).tolist()
        self.reference_gaps += gaps
        worst = max(range(len(gaps)), key=lambda row: gaps[row])
        if not gaps[worst] <= self._train.reference_tolerance:
            pair = self._examples.example(pair_index[worst % len(pair_index)])
            mean = sum(self.reference_gaps) / len(self.reference_gaps)
            raise ReferenceGapError(
                f"train.reference = 'check': pair {pair.id} of policy version {pair.policy_version}: the log-prob "
                f"that the engine gave and the trainer's differ by {gaps[worst]:.4g} nats a token (mean over "
                f"{len(self.reference_gaps)} answers {mean:.4g}), train.reference_tolerance = "
                f"{self._train.reference_tolerance:g}. The generators served another policy or another dtype; "
                f"train.reference=recompute trains without the engine's numbers"
            )

    @contextlib.contextmanager
    def _reference_policy(self) -> Iterator[None]:
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            yield

    def _sums(self, forward: Any, *, inputs: dict[str, Any]) -> torch.Tensor:
        return self._token_logps(forward, inputs=inputs).float().sum(dim=1)

    @classmethod
    def _token_logps(cls, forward: Any, *, inputs: dict[str, Any]) -> torch.Tensor:
        return cls._outputs(forward, inputs=inputs).log_probs

    @staticmethod
    def _outputs(forward: Any, *, inputs: dict[str, Any]) -> Any:
        kept = {key: value for key, value in inputs.items() if key not in _NOT_FOR_THE_MODEL}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        return forward(**kept, labels=labels, fused_lm_head=True, use_cache=False)

    def _imitation_loss(self, forward: Any, *, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch of single answers, which TRL's trainer of pairs does not have; it has no reference.

        The metrics are those of TRL that mean something here: entropy, mean_token_accuracy and logps/chosen.
        """
        outputs = self._outputs(forward, inputs=inputs)
        is_answer = inputs["completion_mask"][:, 1:].bool()
        num_tokens = is_answer.sum(dim=1)
        logp = outputs.log_probs.float().sum(dim=1)
        with torch.no_grad():
            self._note_imitation(
                entropy=(outputs.entropy.float() * is_answer).sum(),
                num_right=(outputs.is_top1 & is_answer).sum(),
                num_tokens=num_tokens.sum(),
                logp=logp,
            )
        loss = weighted_sft_loss if self._train.objective == "weighted_sft" else sft_loss
        return loss(logp, num_tokens=num_tokens, weights=inputs[_WEIGHTS]).mean()

    def _note_imitation(
        self, *, entropy: torch.Tensor, num_right: torch.Tensor, num_tokens: torch.Tensor, logp: torch.Tensor
    ) -> None:
        """Write TRL's metrics of imitated answers from sums over a batch; `logp` [P] is of each answer."""
        num_answers = torch.tensor(float(len(logp)), device=logp.device)
        sums = torch.stack([entropy, num_right.float(), num_tokens.float(), logp.sum(), num_answers])
        entropies, right, tokens, said, answers = self.accelerator.reduce(sums).tolist()
        for name, value in (
            ("entropy", entropies / tokens),
            ("mean_token_accuracy", right / tokens),
            ("logps/chosen", said / answers),
        ):
            self._metrics["train"][name].append(value)

    def _two_views_loss(self, model: Any, *, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss of answers that are imitated with two views of their pictures, which are to agree."""
        seen = two_views(model, inputs=self._model_inputs(inputs), views=inputs[_VIEWS])
        with torch.no_grad():
            self._note_imitation(
                entropy=seen.entropy.sum(),
                num_right=seen.num_right.sum(),
                num_tokens=seen.num_tokens.sum(),
                logp=seen.plain_logp,
            )
            sums = torch.stack([seen.divergence.sum(), seen.painted_logp.sum(), seen.num_tokens.sum()])
            divergence, painted, tokens = self.accelerator.reduce(sums).tolist()
        self._metrics["train"]["views/divergence_a_token"].append(divergence / tokens)
        self._metrics["train"]["views/painted_logp_a_token"].append(painted / tokens)
        return two_views_loss(
            seen.plain_logp,
            seen.painted_logp,
            seen.divergence,
            num_tokens=seen.num_tokens,
            view_weight=self._train.view_weight,
            consistency_weight=self._train.consistency_weight,
        ).mean()

    def _noise_loss(
        self, forward: NoisyForward, *, inputs: Mapping[str, Any], reference: torch.Tensor
    ) -> torch.Tensor:
        """POVID's second stage: the chosen answer against its pair's rejected one and against the noisy tokens.

        Args:
            reference: [P] log-probs of the reference's own noisy tokens.
        """
        train = self._train
        assert (
            forward.log_probs is not None and forward.noisy_logps is not None and forward.num_collisions is not None
        )
        chosen, rejected = forward.log_probs.float().sum(dim=1).chunk(2)
        with torch.no_grad():
            num_places = inputs["completion_mask"].chunk(2)[0].sum()
            sums = torch.stack([forward.num_collisions.float(), num_places.float(), forward.noisy_logps.sum()])
            collisions, places, noisy = self.accelerator.reduce(sums).tolist()
        self._metrics["train"]["noise/same_token"].append(collisions / places)
        self._metrics["train"]["logps/noise_a_token"].append(noisy / places)
        return two_rejected_dpo_loss(
            chosen,
            rejected,
            forward.noisy_logps,
            inputs["ref_chosen_logps"],
            inputs["ref_rejected_logps"],
            reference,
            beta=train.beta,
            second_weight=train.noise_weight,
        ).mean()

    def _objective(
        self, loss: torch.Tensor, *, log_probs: torch.Tensor, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """TRL's loss of pairs, or ours where TRL has none, plus `train.nll_weight` times the chosen answers' NLL.

        Returns:
            The whole, and the NLL's part of it.
        """
        train = self._train
        if not _is_ours(train) and not train.nll_weight:
            return loss, torch.zeros_like(loss)
        chosen, rejected = log_probs.float().sum(dim=1).chunk(2)
        logps = (chosen, rejected, inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
        if train.objective == "dpo_positive":
            loss = dpo_positive_loss(*logps, beta=train.beta, penalty=train.positive_penalty).mean()
        elif train.objective == "weighted_sft":
            num_tokens = inputs["completion_mask"].sum(dim=1).chunk(2)[0]
            loss = weighted_sft_loss(chosen, num_tokens=num_tokens, weights=torch.ones_like(chosen)).mean()
        elif _is_ours(train):
            loss = dpo_loss(*logps, beta=train.beta, label_smoothing=train.label_smoothing).mean()
        nll = train.nll_weight * nll_loss(chosen).mean()
        return loss + nll, nll

    @torch.no_grad()
    def sums_of_answers(self, answers: Sequence[tuple[Ask, Sequence[int]]]) -> tuple[float, ...]:
        """Summed log-prob of each answer, in nats, under the policy as it is now. All processes call it."""
        prompts = self._collator.prompts([ask for ask, _ in answers])
        batch = self._collator.batch(prompts, answers=[answer_ids for _, answer_ids in answers])
        with self._evaluating() as engine:
            return tuple(self._sums(engine, inputs=self._prepare_inputs(batch)).tolist())

    @torch.no_grad()
    def sums_of_pairs(self, pairs: Sequence[Example]) -> tuple[list[float], list[float]]:
        """Summed log-probs, in nats, of the chosen and of the rejected answers, under the policy as it is now; of
        single answers there are no rejected ones.

        All processes call it, with as many pairs.
        """
        chosen: list[float] = []
        rejected: list[float] = []
        at_once = self.args.per_device_train_batch_size
        for start in range(0, len(pairs), at_once):
            some = pairs[start : start + at_once]
            sums = [float(logps.sum()) for logps in self.answer_logps(some, collator=self._collator)]
            chosen += sums[: len(some)]
            rejected += sums[len(some) :]
        return chosen, rejected

    def reference_sums_of_pairs(self, pairs: Sequence[Example]) -> tuple[list[float], list[float]]:
        """As `sums_of_pairs`, under the reference."""
        with self._reference_policy():
            return self.sums_of_pairs(pairs)

    @torch.no_grad()
    def answer_logps(self, pairs: Sequence[Example], *, collator: PairCollator) -> list[torch.Tensor]:
        """Log-probs of the tokens of each answer, computed in the form that `collator` lays out.

        All processes call it.

        Returns:
            One tensor for each answer, with one log-prob for each token: all chosen answers in the order of the
            pairs, whatever order the batch has, then all rejected ones, if there are any.
        """
        batch = self._prepare_inputs(collator(pair_rows(pairs)))
        order = batch.pop("pair_index")
        with self._evaluating() as engine:
            forward, inputs = self._forward(engine, inputs=batch)
            logps = self._token_logps(forward, inputs=inputs)
        is_answer = inputs["completion_mask"][:, 1:].bool()
        rows = [row[mask].float().cpu() for row, mask in zip(logps, is_answer, strict=True)]
        halves = rows[: len(pairs)], rows[len(pairs) :]
        return [half[order.index(index)] for half in halves if half for index in range(len(pairs))]

    def try_backward(self, pairs: Sequence[Example], *, collator: PairCollator) -> None:
        """Compute the LoRA's gradients in the form that `collator` lays out, and drop them.

        DeepSpeed, which would exchange them, has no part in it, so a process that fails leaves no other waiting. With
        parameters in shards (stage 3) even a forward pass is common work, and nothing is tried.
        """
        model = self.accelerator.unwrap_model(self.model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if any(hasattr(parameter, "ds_id") for parameter in trained):
            return
        batch = self._prepare_inputs(collator(pair_rows(pairs)))
        del batch["pair_index"]
        model.train()
        forward, inputs = self._forward(model, inputs=batch)
        torch.autograd.grad(self._sums(forward, inputs=inputs).sum(), trained)

    def step(self, pairs: Sequence[Example], *, collator: PairCollator) -> None:
        """One optimizer step in the form that `collator` lays out. All processes call it, after `train`."""
        self.accelerator.gradient_state._set_sync_gradients(True)
        self.training_step(self.model_wrapped, self._training_collator(collator)(pair_rows(pairs)))

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[Callable[..., Any]]:
        engine = self.model_wrapped
        engine.eval()
        try:
            yield engine
        finally:
            engine.train()


class CheckpointClock(TrainerCallback):
    """Says after which steps a checkpoint is written; all processes of the group say the same.

    Args:
        every_s: since the last one, or since training began.
        every_steps: as well.
    """

    def __init__(self, *, every_s: float | None, every_steps: int | None) -> None:
        self._every_s = every_s
        self._every_steps = every_steps
        self._last_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last_s = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        # After the last step comes the adapter. A checkpoint of it would be one to go on from, and transformers makes
        # a further step of such before it asks whether to stop.
        if state.global_step < state.max_steps and not control.should_training_stop:
            control.should_save = self._is_due_by_steps(state.global_step) or self._is_due_by_time(args.device)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last_s = time.monotonic()

    def _is_due_by_steps(self, step: int) -> bool:
        return self._every_steps is not None and step % self._every_steps == 0

    def _is_due_by_time(self, device: torch.device) -> bool:
        """Rank 0's clock decides: two processes that disagreed would wait for each other for ever."""
        if self._every_s is None:
            return False
        is_due = time.monotonic() - self._last_s >= self._every_s
        if distributed.get_world_size() == 1:
            return is_due
        of_first = torch.tensor(float(is_due), device=device)
        distributed.broadcast(of_first, src=0)
        return bool(of_first)


class StepClock(TrainerCallback):
    """Reports every optimizer step, and times the loop from its first batch to its last update.

    Args:
        more: what is to be reported beside TRL's metrics, asked after every step.

    Attributes:
        losses: of every step, those before a restart included; of the preferences alone, which is log 2 for DPO as
            long as policy and reference are the same, whatever `train.nll_weight` adds to it.
        last_logs: TRL's metrics of the last step.
        seconds: from the start of the loop to the last step.
    """

    def __init__(self, *, on_step: OnStep, more: Callable[[], Mapping[str, float]] = dict) -> None:
        self._more = more
        self.losses: list[float] = []
        self.last_logs: dict[str, float] = {}
        self.seconds = 0.0
        self._on_step = on_step
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()
        self.losses = [_preference_loss(entry) for entry in state.log_history if "loss" in entry]  # before a restart

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return  # the summary after the last step
        self.seconds = time.monotonic() - self._started
        self.losses.append(_preference_loss(logs))
        self.last_logs = {key: float(value) for key, value in logs.items()} | dict(self._more())
        self._on_step(state.global_step, state.max_steps, self.losses[-1], self.last_logs)


def _preference_loss(logs: Mapping[str, Any]) -> float:
    return float(logs["loss"]) - float(logs.get(_NLL_TERM, 0.0))


def _is_ours(train: Train) -> bool:
    return train.objective in ("dpo_positive", "weighted_sft") or (
        train.objective == "sigmoid" and bool(train.label_smoothing)
    )
