"""The training of one cycle: TRL's trainer with DeepSpeed turns examples into a PEFT adapter.

Imports the whole training stack, so only train workers import it, after `actors.train.worker.prepare_process`. Knows
one process of the group and its collectives; knows nothing of Ray, mailboxes or the loop.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import distributed
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from actors.train.causality import sees_ahead
from actors.train.checkpoints import Checkpoint, CheckpointFolder, training_key
from actors.train.dose_clock import LEAST_TO_LOOK_AT, DoseClock
from actors.train.examples import ExampleStream, HeldExamples, Provenance, Verdict
from actors.train.pair_trainer import CheckpointClock, PairTrainer, StepClock
from actors.train.reach import Reach, SharedDisk
from actors.train.settings import training_arguments
from actors.train.shards import trained_weights
from actors.train.shared_step import FLEX_BLOCK, can_use_flex, family_positions, set_flex
from actors.train.stream import HELD_OUT, ExampleSource
from actors.train.threads import loader_threads, num_local_workers
from csr_ray.config.schema import Train
from csr_ray.data.pictures import load_picture, picture_size
from csr_ray.errors import ConfigError, PicturesGone
from csr_ray.machine.cores import whole_cores
from csr_ray.policy.processor import load_processor
from csr_ray.policy.token_merging import merge_before
from csr_ray.policy.visual_tokens import kept_tokens
from csr_ray.policy.weights import merged_by_module
from csr_ray.ports import OnStep
from csr_ray.records import IMITATIONS, Ask, Example, Phase, Picture, Probe, Target, TrainOrder, TrainResult
from csr_ray.store.atomic import new_folder
from csr_ray.training.collate import UNREADABLE, LoadPicture, PairCollator, PairJudge, SharedPrefixCollator, pair_rows
from csr_ray.training.dose import (
    Dose,
    DosePlan,
    divergence_of_phase,
    held_out_share,
    is_held_out,
    margin_of_round,
    rule_learning_rate,
)
from csr_ray.training.unmerged import add_unmerged

_log = logging.getLogger(__name__)

_MAX_PROBES = 8
# In nats a token; what is allowed beside rounding noise. Float32 kernels differ by less, wrong masks by far more.
_SAME_FORM = 1e-4


class PlainCpuAccelerator(CPU_Accelerator):
    """DeepSpeed's CPU, minus the shared-memory all-reduce that it would compile for a minute at first use.

    That kernel serves inference; training over gloo never calls it.
    """

    def create_op_builder(self, op_name: str) -> Any:
        return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)


class CycleTrainer:
    """What one process of the group keeps from cycle to cycle: the processor and the policy to start from.

    All processes of the group make the same calls in the same order.

    Args:
        model: folder of the base model.
        seed: of the run.
        merges: whether earlier phases' adapters are merged into the weights, or add to them unmerged
            (`csr_ray.training.unmerged`).
        visual_tokens: `policy.visual_tokens`.

    Raises:
        ConfigError: the model cannot have its visual tokens merged.
    """

    def __init__(
        self, train: Train, *, model: Path, seed: int, merges: bool = True, visual_tokens: int | None = None
    ) -> None:
        self._train = train
        self._merges = merges
        self._seed = seed
        self._model = model
        join_group(use_gpu=train.gpus_per_worker > 0)
        self._visual_tokens = kept_tokens(model, asked=visual_tokens)
        self._processor = load_processor(model, visual_tokens=self._visual_tokens)
        self._loader_threads = loader_threads(train, num_cores=whole_cores(), num_local_workers=num_local_workers())
        self._policy: PreTrainedModel | None = None
        self._policy_adapters: tuple[str, ...] = ()
        self._finished: PairTrainer | None = None
        self._shares_prefix = train.step == "shared_prefix"  # this and the next are settled by `rehearse`
        self._uses_flex = False
        # What the imports left behind lives for ever. Without this each of the few garbage collections of a cycle
        # would walk through millions of such objects for half a second.
        gc.collect()
        gc.freeze()

    @property
    def shares_prefix(self) -> bool:
        """Whether a pair is trained as one sequence; settled by `rehearse`."""
        return self._shares_prefix

    def rehearse(self) -> None:
        """Train two made-up pairs and forget them; settle whether this model can share the prefix of a pair.

        One step is trained in TRL's form, which loads all that is loaded lazily, and one in the form and attention
        that are settled, so that kernels are compiled and a configuration that cannot train fails early, while the
        first prompts are rolled out. A form whose forward or backward pass fails, or gives other log-probs, is left
        out, and the log says why. With parameters in shards (stage 3) a backward pass is common work of all workers
        and is seen to fail only in the step itself, which ends the run.

        Raises:
            ConfigError: `train.lora_targets` names layers the model does not have, `train.step` asks for a form that
                gives other log-probs on this model, or the step fails in the form that is settled.
        """
        pairs = rehearsal_pairs(self._processor)
        self.prepare(())
        self._shares_prefix = self._uses_flex = False
        trainer = self._new_trainer(
            HeldExamples(pairs),
            learning_rate=self._learning_rate,
            load_picture=rehearsal_picture,
            is_rehearsal=True,
        )
        trainer.train()
        with tempfile.TemporaryDirectory() as directory:
            save_adapter(trainer.model, output_dir=Path(directory) / "adapter")
        if self._train.step != "concatenated":
            self._settle_form(trainer, pairs=pairs)
        # With the attention that is settled, as after every cycle.
        trainer.sums_of_answers([(pair.ask, pair.chosen.token_ids) for pair in pairs])
        self._policy, self._finished = None, trainer

    def _settle_form(self, trainer: PairTrainer, *, pairs: Sequence[Example]) -> None:
        """Take the first form that gives TRL's log-probs and has a backward pass here, and train one step in it."""
        assert self._policy is not None
        separate_form = self._collator(rehearsal_picture, is_shared=False)
        if self._sees_ahead(trainer, pairs=pairs, form=separate_form):
            self._refuse_to_share(trainer, "tokens of its prompts see tokens behind them")
            return
        separate = trainer.answer_logps(pairs, collator=separate_form)
        with rounding_noise(self._policy):
            noise = largest_gap(trainer.answer_logps(pairs, collator=separate_form), separate)
        has_flex = can_use_flex(self._policy)
        reason = ""
        for use_flex in (True, False) if has_flex else (False,):
            if has_flex:
                set_flex(self._policy, is_on=use_flex)
            trainer.use_flex = use_flex
            shared_form = self._collator(rehearsal_picture, is_shared=True, use_flex=use_flex)
            is_same, reason = self._try_form(
                shared_form, trainer=trainer, pairs=pairs, separate=separate, noise=noise
            )
            _log.info("train: one sequence a pair, flex attention %s: %s", use_flex, reason)
            if is_same:
                self._rehearse_step(trainer, pairs=pairs, form=shared_form)
                self._shares_prefix, self._uses_flex = True, use_flex
                return
        self._refuse_to_share(trainer, reason)

    def _sees_ahead(self, trainer: PairTrainer, *, pairs: Sequence[Example], form: PairCollator) -> bool:
        """Whether any worker finds that the model's mask is not that of one sequence. All workers call it."""
        assert self._policy is not None
        finds = sees_ahead(
            self._policy,
            compute=lambda: trainer.answer_logps(pairs, collator=form),
            batch=form(pair_rows(pairs)),
            # Not the processor's, which for Gemma 3 is the token that begins an image.
            image_token=getattr(self._policy.config, "image_token_id", None),
        )
        num_finding = torch.tensor(float(finds), device=trainer.args.device)
        distributed.all_reduce(num_finding)
        return bool(num_finding)

    def _refuse_to_share(self, trainer: PairTrainer, reason: str) -> None:
        """Go on in TRL's form and log why.

        Raises:
            ConfigError: `train.step` asks for one sequence a pair.
        """
        family = type(trainer.accelerator.unwrap_model(trainer.model).get_base_model()).__name__
        if self._train.step == "shared_prefix":
            raise ConfigError(
                f"train.step = 'shared_prefix': {family} does not give the same log-probs in that form ({reason}); "
                f"set train.step to auto or concatenated"
            )
        _log.warning("train: %s: one sequence a pair: %s; falling back to TRL's concatenated form", family, reason)

    def _rehearse_step(self, trainer: PairTrainer, *, pairs: Sequence[Example], form: PairCollator) -> None:
        """One real step, on all workers together; one that fails here may leave the others waiting, so it is the end.

        Raises:
            ConfigError: the step fails; says which key trains without this form.
        """
        try:
            trainer.step(pairs, collator=form)
        except Exception as error:
            raise ConfigError(
                f"train.step = {self._train.step!r}: one sequence a pair gives the right log-probs, but cannot be "
                f"trained here ({type(error).__name__}: {error}); set train.step=concatenated"
            ) from error

    def _try_form(
        self,
        form: PairCollator,
        *,
        trainer: PairTrainer,
        pairs: Sequence[Example],
        separate: Sequence[torch.Tensor],
        noise: float,
    ) -> tuple[bool, str]:
        """Compute the pairs in another form, forward and backward.

        Args:
            separate: log-probs of the answers' tokens in TRL's form.
            noise: by how much these move if every matrix product is rounded the other way, in nats a token.

        Returns:
            Whether every process of the group found the form the same and fit to train, and this process's own
            finding in words.
        """
        try:
            gap = largest_gap(trainer.answer_logps(pairs, collator=form), separate)
            is_same = gap <= noise + _SAME_FORM
            reason = f"an answer's log-probs differ by {gap:.3g} nats a token, where rounding makes {noise:.3g}"
            if is_same:
                trainer.try_backward(pairs, collator=form)
        except torch.OutOfMemoryError as error:
            is_same, reason = False, f"not enough GPU memory for two short pairs: {error}"
        # A model family's forward may raise anything on a row that it was not written for, and so may torch.compile
        # and Triton on a machine that they do not know.
        except Exception as error:
            is_same, reason = False, f"{type(error).__name__}: {error}"
        num_refusing = torch.tensor(float(not is_same), device=trainer.args.device)
        distributed.all_reduce(num_refusing)
        if is_same and num_refusing:
            reason += "; another worker refuses it"
        return not num_refusing, reason

    def prepare(self, adapters: Sequence[str]) -> None:
        """Let go of the last cycle and load the policy of base and `adapters`, so that `train` finds it ready.

        Raises:
            ConfigError: `train.lora_targets` names layers the model does not have.
        """
        self.release()
        dtype = getattr(torch, self._train.dtype)
        earlier = [Path(adapter) for adapter in adapters]
        policy = load_policy(
            self._model, adapters=earlier, dtype=dtype, merges=self._merges, visual_tokens=self._visual_tokens
        )
        lora_pattern(policy, targets=self._train.lora_targets)
        self._policy, self._policy_adapters = policy, tuple(adapters)

    def release(self) -> None:
        """Let go of the last cycle and of a policy that is ready, and of what they take of the GPU."""
        self._policy, self._policy_adapters = None, ()
        if self._finished is not None:
            _release(self._finished)
            self._finished = None
            gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def wait_for_all(self) -> None:
        """Wait until every process of the group has come to this call."""
        distributed.barrier()

    def train(
        self,
        source: ExampleSource,
        *,
        order: TrainOrder,
        adapters: Sequence[str],
        on_step: OnStep,
        reach: Reach | None = None,
    ) -> TrainResult:
        """Train one cycle, or go on from its newest checkpoint. Every process returns the result; rank 0 has written
        the adapter, and leaves the checkpoints to whoever commits it.

        Args:
            source: where the cycle's examples come from.
            adapters: folders that make the policy to start from, on top of the base model; oldest first.
            on_step: called in every process after each optimizer step.
            reach: how this process gets at examples and checkpoints; None: they lie on its own disk.

        Raises:
            ValueError: no example can be trained on.
            PicturesGone: not one picture can be opened any more.
            StalePolicyError: an example is of another policy version than the one that is trained (of a phase that
                accumulates: of a later one).
            FloatingPointError: the loss is not a number; names the step and the examples.
        """
        started = time.monotonic()
        if self._policy is None or tuple(adapters) != self._policy_adapters:
            self.prepare(adapters)
        output_dir = Path(order.output_dir)
        reach = reach or SharedDisk()
        held_share = self._held_share(order)
        judge = self._judge(version=len(adapters), held_share=held_share, phase=order.cycle.phase)
        examples = ExampleStream(source, judge=judge, here=reach.examples)
        training = training_key(
            self._train, seed=self._seed, cycle=order.cycle, merges=self._merges, scale=order.scale
        )
        checkpoints = reach.checkpoints(output_dir)
        if held_share is not None and _few_are_held_out(examples):
            examples.train_on_held_out()
            held_share = None
        resumed = _take_up(checkpoints, training=training, examples=examples)
        if resumed is not None:
            _log.info("%s: going on from %s", order.cycle, resumed.path)
        if not examples.has(0):
            if set(examples.dropped) == {UNREADABLE}:  # the policy has seen all of them
                reason = f"{examples.dropped[UNREADABLE]} of {order.cycle} are needed to train"
                raise PicturesGone.all_of_them(reason=reason)
            raise ValueError(f"{order.cycle}: no example can be trained on; dropped: {dict(examples.dropped)}")
        dose = None if held_share is None else self._new_dose(examples, order=order)
        learning_rate = order.scale * (order.learning_rate or self._learning_rate)
        trainer = self._new_trainer(
            examples,
            learning_rate=learning_rate,
            round_index=order.cycle.round_index,
            phase=order.cycle.phase,
            checkpoints=checkpoints,
            training=training,
            dose=dose,
        )
        dose_clock = None if dose is None else self._dose_clock(dose, trainer=trainer, examples=examples)
        clock = StepClock(on_step=on_step, more=lambda: {} if dose_clock is None else dose_clock.news)
        if dose_clock is not None:
            trainer.add_callback(dose_clock)
        trainer.add_callback(clock)
        trainer.add_callback(
            CheckpointClock(every_s=self._train.checkpoint_s, every_steps=self._train.checkpoint_steps)
        )
        waited_before_s = examples.waited_s
        trainer.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
        if dose is not None and dose.looks:
            trainer.take_kept_weights()
        elif dose is not None:
            _log.warning("train: %s: too few of the pairs held out had come to look at them", order.cycle)
        examples.wait_for_end()  # of a stream that had not ended when the dose was enough
        waited_s = examples.waited_s - waited_before_s
        if trainer.waited_for_batches_s is not None:  # files were waited for while steps were made
            waited_s = min(waited_s, trainer.waited_for_batches_s)
        engine = trainer.model_wrapped
        # accelerate falls back to plain data parallelism when one of its many conditions is not met.
        assert isinstance(engine, DeepSpeedEngine), type(engine)
        save_adapter(trainer.model, output_dir=output_dir)
        probes = _probes(trainer, examples=examples.leading(_MAX_PROBES))
        metrics = {**clock.last_logs, "deepspeed_stage": float(engine.zero_optimization_stage())}
        metrics |= {f"dropped/{reason}": float(count) for reason, count in examples.dropped.items()}
        if resumed is not None:
            metrics["resumed_from_step"] = float(resumed.progress.step)
        if dose_clock is not None:
            metrics["held_out/seconds"] = dose_clock.seconds
        metrics["shared_prefix"] = float(self._shares_prefix)
        metrics |= reference_metrics(trainer.reference_gaps)
        self._policy, self._finished = None, trainer
        return TrainResult(
            adapter=str(output_dir),
            version=len(adapters) + 1,
            num_pairs=examples.num_usable,
            num_steps=len(clock.losses),
            seconds=time.monotonic() - started,
            optimizer_s=clock.seconds - waited_s,
            loss_first=clock.losses[0],
            loss_last=clock.losses[-1],
            probes=probes,
            metrics=metrics,
            dose={} if dose is None or not dose.looks else dose.to_plain(learning_rate=learning_rate),
        )

    @property
    def _learning_rate(self) -> float:
        """What the config says, or the rule makes of the policy that is loaded."""
        if self._train.learning_rate is not None:
            return self._train.learning_rate
        assert self._policy is not None
        num_layers = self._policy.config.get_text_config().num_hidden_layers
        return rule_learning_rate(lora_alpha=self._train.lora_alpha, num_layers=num_layers)

    def _held_share(self, order: TrainOrder) -> float | None:
        """Which share of the cycle's examples is held out, to find its dose; None: none is."""
        if self._train.dose == "epochs":
            return None
        return held_out_share(order.num_drawn_from or order.num_examples_at_most, share=self._train.held_out)

    def _new_dose(self, examples: ExampleStream, *, order: TrainOrder) -> Dose:
        train = self._train
        steps_a_pass = math.ceil(len(examples) / train.batch_size)
        of_round = margin_of_round(train.target_margin, round_index=order.cycle.round_index, decay=train.margin_decay)
        margin = None if (order.cycle.phase.objective or train.objective) in IMITATIONS else of_round
        divergence = train.max_divergence or divergence_of_phase(margin)
        return Dose(
            DosePlan(
                margin=None if margin is None else order.scale * margin,
                divergence=order.scale * divergence,
                patience=train.patience,
                lr_sum=None if order.lr_sum is None else order.scale * order.lr_sum,
                steps_a_pass=steps_a_pass,
                max_steps=train.max_epochs * steps_a_pass,
                finds_rate=order.learning_rate is None and train.learning_rate is None,
            )
        )

    def _dose_clock(self, dose: Dose, *, trainer: PairTrainer, examples: ExampleStream) -> DoseClock:
        return DoseClock(
            dose,
            batch_size=self._train.batch_size,
            beta=self._train.beta,
            num_held_out=lambda: examples.num_held_out,
            held_out=examples.held_out,
            sums=trainer.sums_of_pairs,
            reference_sums=trainer.reference_sums_of_pairs,
            keep=trainer.keep_weights,
        )

    def _judge(self, *, version: int, held_share: float | None, phase: Phase) -> Verdict | None:
        """What decides for each example whether it can be trained on; only rank 0 has one, the others None."""
        if distributed.get_rank() != 0:
            return None
        usable = PairJudge(processor=self._processor, picture_size=picture_size, max_length=self._train.max_length)
        provenance = Provenance(version=version, accumulates=phase.accumulates)
        needs_logps = phase.num_answers == 2 and phase.has_reference and self._train.reference != "recompute"

        def judge(example: Example) -> str | None:
            reason = judge_alone(example)
            if reason is None and held_share and is_held_out(example.id, seed=self._seed, share=held_share):
                return HELD_OUT
            return reason

        def judge_alone(example: Example) -> str | None:
            if (reason := provenance(example)) is not None:
                return reason
            has_logps = all(target.logp is not None for target in example.targets)
            assert has_logps or not needs_logps, f"example {example.id}: its phase should say has_reference=False"
            return usable(example)

        return judge

    def _new_trainer(
        self,
        examples: ExampleStream | HeldExamples,
        *,
        learning_rate: float,
        round_index: int = 0,
        phase: Phase | None = None,
        load_picture: LoadPicture = load_picture,
        is_rehearsal: bool = False,
        checkpoints: CheckpointFolder | None = None,
        training: str = "",
        dose: Dose | None = None,
    ) -> PairTrainer:
        train = self._train.model_copy(update=phase.own_keys if phase else {})
        # The made-up pairs of a rehearsal have no log-probs of an engine either, so there is nothing to compare.
        is_of_others = train.objective == "dpo_noise" or train.rejected_logp != "labels"
        if is_rehearsal or (phase and not phase.has_reference) or is_of_others:
            train = train.model_copy(update={"reference": "recompute"})
        assert self._policy is not None
        epochs = train.max_epochs if dose is not None else train.epochs or 1
        if self._uses_flex:
            set_flex(self._policy, is_on=True)
        return PairTrainer(
            self._policy,
            args=training_arguments(
                train,
                seed=self._seed,
                round_index=round_index,
                learning_rate=learning_rate,
                epochs=epochs,
                steps_a_pass=math.ceil(len(examples) / train.batch_size),
                output_dir=None if checkpoints is None else checkpoints.staging,
            ),
            train=train,
            examples=examples,
            collator=self._collator(load_picture, is_shared=self._shares_prefix, use_flex=self._uses_flex),
            use_flex=self._uses_flex,
            loader_threads=self._loader_threads,
            checkpoints=checkpoints,
            training=training,
            dose=dose,
            lora=LoraConfig(
                r=train.lora_rank,
                lora_alpha=train.lora_alpha,
                lora_dropout=0.0,
                target_modules=lora_pattern(self._policy, targets=train.lora_targets),
                task_type="CAUSAL_LM",
            ),
        )

    def _collator(self, load_picture: LoadPicture, *, is_shared: bool, use_flex: bool = False) -> PairCollator:
        threads = max(1, self._loader_threads)
        if not is_shared:
            return PairCollator(processor=self._processor, load_picture=load_picture, threads=threads)
        assert self._policy is not None
        return SharedPrefixCollator(
            processor=self._processor,
            load_picture=load_picture,
            threads=threads,
            positions=family_positions(self._policy),
            budget=self._train.pack_tokens,
            multiple=FLEX_BLOCK if use_flex else 1,
        )


def _few_are_held_out(examples: ExampleStream) -> bool:
    """Whether it is certain that fewer pairs are held out than can be looked at, or that nothing else is there."""
    if not examples.is_growing:
        return examples.num_held_out < LEAST_TO_LOOK_AT
    return not examples.has(0) and examples.num_held_out > 0


def _take_up(checkpoints: CheckpointFolder, *, training: str, examples: ExampleStream) -> Checkpoint | None:
    """The newest checkpoint that is whole and of these examples, which are then in its order; None: begin anew.

    Rank 0 looks which are whole, because a disk that fails may answer two processes differently.
    """
    found: list[Any] = [checkpoints.whole(training=training) if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(found, src=0)
    for one in found[0]:
        checkpoint, progress = checkpoints.here(one), one.progress
        keys = checkpoint.example_keys()
        if examples.take_up(keys, num_planned=progress.num_planned, is_growing=progress.is_growing):
            return checkpoint
        _log.warning("train: %s has seen examples that this cycle does not have, and is passed over", checkpoint.path)
    return None


def _probes(trainer: PairTrainer, *, examples: Sequence[Example]) -> tuple[Probe, ...]:
    """The chosen answers of these examples with their log-probs under the policy as it is now."""
    asked = [(example.ask, example.preferred.token_ids) for example in examples]
    logps = trainer.sums_of_answers(asked) if asked else ()
    return tuple(
        Probe(id=example.id, ask=example.ask, answer_ids=answer_ids, logp=logp)
        for example, (_, answer_ids), logp in zip(examples, asked, logps, strict=True)
    )


def rehearsal_pairs(processor: Any) -> list[Example]:
    """Two pairs of unlike lengths made of ordinary words, for `CycleTrainer.rehearse`."""
    tokenizer = processor.tokenizer
    words = tokenizer("The image shows a small red house near two tall trees.", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    answers = (((*words, end), (*words[:3], end)), ((words[0], end), (*words[2:], *words[:2], end)))
    return [
        Example(
            id=f"rehearsal-{index}",
            ask=Ask(picture=Picture(path=""), text=("Describe the image.", "What is there?")[index]),
            targets=(
                Target(role="chosen", text="", token_ids=tuple(chosen), logp=-1.0, reward=1.0),
                Target(role="rejected", text="", token_ids=tuple(rejected), logp=-2.0, reward=0.0),
            ),
            policy_version=0,
            method="rehearsal",
            seed=0,
        )
        for index, (chosen, rejected) in enumerate(answers)
    ]


def rehearsal_picture(_: Picture) -> Image.Image:
    """The picture of every rehearsal pair: a gradient, so that no two patches are alike."""
    return Image.linear_gradient("L").resize((96, 64)).convert("RGB")


def largest_gap(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    """The mean difference of the log-probs of an answer's tokens, in nats, of the answer where it is largest.

    Not the mean over all answers: what is wrong with the second answer of a pair leaves the first as it was.
    """
    return max(float((ours - theirs).abs().mean()) for ours, theirs in zip(left, right, strict=True))


@contextlib.contextmanager
def rounding_noise(policy: torch.nn.Module) -> Iterator[None]:
    """Move every product of the language model's linear layers by one step of its data type, up or down at random.

    It shows what another order of the same sums, as of another attention kernel, may do to the model's log-probs.
    The process's random numbers are left alone.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
        return output * (1 + torch.finfo(output.dtype).eps * signs.to(output.device)).to(output.dtype)

    hooks = [
        module.register_forward_hook(moved)
        for name, module in policy.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model" in name.split(".") and "lora" not in name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reference_metrics(gaps: Sequence[float]) -> dict[str, float]:
    """Mean and largest of the gaps between engine and trainer, in nats a token; empty where none was measured."""
    if not gaps:
        return {}
    return {"reference_gap/mean": sum(gaps) / len(gaps), "reference_gap/max": max(gaps)}


def load_policy(
    model: Path,
    *,
    adapters: Sequence[Path],
    dtype: torch.dtype,
    merges: bool = True,
    visual_tokens: int | None = None,
) -> PreTrainedModel:
    """The base plus adapters in `dtype`, as the generators have it: merged with one rounding, or unmerged.

    Args:
        visual_tokens: of a picture that are kept; None: all.
    """
    policy = AutoModelForImageTextToText.from_pretrained(
        model, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )
    if visual_tokens is not None:
        merge_before(policy.base_model.multi_modal_projector, kept=visual_tokens)
    if not merges:
        add_unmerged(policy, adapters=adapters)
        return policy
    with torch.no_grad():
        for module, tensor in merged_by_module(model, adapters=adapters, dtype=dtype):
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
    """Write the adapter in PEFT's layout. All processes call it; rank 0 writes the folder, which appears whole."""
    state = trained_weights(model)
    if distributed.get_rank() == 0:
        tensors = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
        config = model.peft_config["default"]
        config.inference_mode = True
        with new_folder(output_dir) as staging:
            save_file(tensors, staging / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(str(staging))
    distributed.barrier()  # nobody reports an adapter that is not there yet


def join_group(*, use_gpu: bool) -> None:
    transformers.logging.set_verbosity_warning()
    if use_gpu:
        PartialState()
    else:
        set_accelerator(PlainCpuAccelerator())
        # Without the name of a backend accelerate takes several CPU processes for one.
        PartialState(backend="gloo")


def _release(trainer: PairTrainer) -> None:
    """Clear what accelerate, transformers and DeepSpeed keep in globals, or the next cycle could not start."""
    trainer.accelerator.free_memory()  # destroys the DeepSpeed engine, too
    unset_hf_deepspeed_config()
    AcceleratorState._reset_state()  # transformers' own way to a second Accelerator; the process group stays
    GradientState._reset_state()
