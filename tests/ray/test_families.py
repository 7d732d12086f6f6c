"""Model families end to end: one engine and one round of training each, with transformers and PEFT as the oracle.

Each family makes something else of an image: LLaVA-1.5 one square, LLaVA-NeXT tiles by the image's shape, Qwen2.5-VL
a grid of the image's own size with positions in three axes. So the images are neither square nor of one size.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, Literal
from unittest.mock import AsyncMock, patch

import pytest
from fakes import preference_pair
from PIL import Image
from tiny_models import build_tiny_llava, build_tiny_llava_next, build_tiny_qwen_vl
from training_examples import EndedStream, altered, write_examples

from actors.generate.engine import EngineSettings, VllmEngine
from actors.process.counters import Counting
from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config, Train
from csr_ray.data.pictures import load_picture, picture_size
from csr_ray.records import Cycle, Example, Prompt, Sentence, TrainOrder, TrainResult
from csr_ray.training.collate import PairCollator, PairJudge

FAMILIES: dict[str, Callable[..., Path]] = {
    "llava": build_tiny_llava,
    "llava_next": build_tiny_llava_next,
    "qwen2_5_vl": build_tiny_qwen_vl,
}
SIZES_PX = ((150, 62), (70, 170))  # width, height
TOLERANCE = 1e-3  # nats of a whole answer, fp32
ALL_TARGETS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A running engine of one family and what the policy answered: two answers a prompt, each grown in two goes."""

    name: str
    model: Path
    config: Config
    processor: Any
    engine: VllmEngine
    loop: asyncio.AbstractEventLoop
    prompts: tuple[Prompt, ...]
    grown: tuple[tuple[Sentence, ...], ...]
    directory: Path

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(call)

    @property
    def answers(self) -> list[tuple[int, ...]]:
        """Token ids; the first of each prompt, then the second of each, as a batch has them."""
        return [sum((sentence.token_ids for sentence in answer), ()) for answer in self.grown]

    def served_logps(self) -> list[float]:
        """The engine's log-prob of each whole answer under the weights it has now."""
        asks = [prompt.ask for prompt in self.prompts] * 2
        calls = [
            self.engine.answer_logp(ask, answer_ids=answer) for ask, answer in zip(asks, self.answers, strict=True)
        ]
        return [self.run(call) for call in calls]

    def expected_logps(self, *adapters: Path) -> list[float]:
        """The same by transformers and PEFT, in the one batch that training would make of them."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForImageTextToText

        policy = AutoModelForImageTextToText.from_pretrained(self.model, dtype=torch.float32)
        if adapters:
            policy = PeftModel.from_pretrained(policy, str(adapters[0]), adapter_name="0")
            for index, adapter in enumerate(adapters[1:], start=1):
                policy.load_adapter(str(adapter), adapter_name=str(index))
            policy.base_model.set_adapter([str(index) for index in range(len(adapters))])
        collator = PairCollator(processor=self.processor, load_picture=load_picture)
        prompts = collator.prompts([prompt.ask for prompt in self.prompts])
        batch = collator.batch(prompts, answers=self.answers)
        is_answer = batch.pop("completion_mask")[:, 1:]
        with torch.no_grad():
            logps = policy.eval()(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
        picked = logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (picked * is_answer).sum(dim=1).tolist()


def _config(model: Path, *, publish: str) -> Config:
    return parse_config(
        {
            "data": {"prompts": "-"},
            "policy": {"model": str(model), "dtype": "float32", "max_model_len": 512},
            "scorer": {"model": "-"},
            "generators": {"kv_cache_gib": 0.1, "max_num_seqs": 8, "publish": publish},
            "train": {
                "batch_size": len(SIZES_PX),
                "lora_rank": 4,
                "learning_rate": 1e-2,
                "warmup_ratio": 0.0,
                "dtype": "float32",
                "threads": 1,
                "max_length": 512,
            },
        }
    )


def _prompts(directory: Path) -> tuple[Prompt, ...]:
    rng = random.Random(0)
    prompts = []
    for index, (width, height) in enumerate(SIZES_PX):
        path = directory / f"{index}.png"
        Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(path)
        text = ("Describe the image.", "Is there a green star?")[index]
        prompts.append(Prompt(id=f"prompt-{index}", image=str(path), text=text))
    return tuple(prompts)


async def _grow(engine: VllmEngine, prompts: Sequence[Prompt]) -> tuple[tuple[Sentence, ...], ...]:
    pairs = []
    for seed, prompt in enumerate(prompts):
        pair = []
        for first in await engine.continuations(prompt.ask, prefix_ids=(), num=2, max_tokens=6, seed=seed):
            going_on = [] if first.ended else [first.token_ids]
            rest = [
                await engine.continuations(prompt.ask, prefix_ids=prefix, num=1, max_tokens=6, seed=seed)
                for prefix in going_on
            ]
            pair.append((first, *(sentence for sentences in rest for sentence in sentences)))
        pairs.append(pair)
    return tuple(answer for column in zip(*pairs, strict=True) for answer in column)


@contextmanager
def serving(name: str, *, directory: Path, publish: Literal["merge", "adapter"] = "merge") -> Iterator[Family]:
    """A family's engine, started and asked for the answers."""
    from transformers import AutoProcessor

    model = FAMILIES[name](directory / "model", seed=0)
    config, prompts = _config(model, publish=publish), _prompts(directory)
    engine = VllmEngine(EngineSettings.of(config), model=model, counting=Counting(actor="generator"))
    loop = asyncio.new_event_loop()
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    with patch.dict(os.environ, environment):  # and forget what vLLM itself sets there
        try:
            loop.run_until_complete(engine.start())
            yield Family(
                name=name,
                model=model,
                config=config,
                processor=AutoProcessor.from_pretrained(model),
                engine=engine,
                loop=loop,
                prompts=prompts,
                grown=loop.run_until_complete(_grow(engine, prompts)),
                directory=directory,
            )
        finally:
            engine.close()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(
    request: pytest.FixtureRequest, training_process: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Family]:
    with serving(request.param, directory=tmp_path_factory.mktemp(request.param)) as family:
        yield family


def random_adapter(family: Family, *, targets: str, seed: int) -> Path:
    """A PEFT folder whose update is not zero, on layers of the language model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    policy = AutoModelForImageTextToText.from_pretrained(family.model, dtype=torch.float32)
    pattern = rf".*\blanguage_model\..*\.({targets})"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=pattern, init_lora_weights=False)
        path = family.directory / f"adapter-{seed}"
        get_peft_model(policy, lora).save_pretrained(str(path))
    return path


def test_sampled_log_probs_are_those_of_transformers(family: Family) -> None:
    sampled = [sum(sum(sentence.logps) for sentence in answer) for answer in family.grown]
    assert all(len(answer) == 2 for answer in family.grown), "every answer was continued behind a prefix"
    assert min(len(answer) for answer in family.answers) >= 4
    assert sampled == pytest.approx(family.expected_logps(), abs=TOLERANCE)
    assert family.served_logps() == pytest.approx(sampled, abs=TOLERANCE), "in one go as in two"


@pytest.mark.parametrize("targets", [("q_proj",), (ALL_TARGETS,), ("q_proj", ALL_TARGETS), ("up_proj",)])
def test_engine_serves_base_plus_exactly_the_given_adapters(family: Family, targets: tuple[str, ...]) -> None:
    """Also where they touch one part of what the engine fuses, and after a policy that touched other layers."""
    adapters = [random_adapter(family, targets=names, seed=seed) for seed, names in enumerate(targets)]
    loaded = family.run(family.engine.load_policy(adapters=[str(adapter) for adapter in adapters]))
    assert (loaded.wrong_tensors, loaded.num_unseen) == ((), 0)
    assert loaded.max_tensor_gap < 1e-5, "every layer answers as its tensor"
    expected, served = family.expected_logps(*adapters), family.served_logps()
    assert served == pytest.approx(expected, abs=TOLERANCE)
    change = [new - old for new, old in zip(expected, family.expected_logps(), strict=True)]
    assert max(map(abs, change)) > 0.1
    family.run(family.engine.load_policy(adapters=[]))
    assert family.served_logps() == pytest.approx(family.expected_logps(), abs=TOLERANCE)


def test_a_prefix_cache_of_the_old_policy_is_noticed(family: Family) -> None:
    ask, num_tokens = family.prompts[0].ask, 200  # several blocks of the cache
    answer = (sum(family.answers, ()) * num_tokens)[:num_tokens]
    probe = lambda: family.run(family.engine.probe(ask, answer_ids=answer))  # noqa: E731
    assert max(probe().cache_gap, probe().cache_gap) < TOLERANCE
    right = probe().logp
    adapter = random_adapter(family, targets=ALL_TARGETS, seed=7)
    with patch.object(family.engine._llm, "reset_prefix_cache", AsyncMock(return_value=True)):
        family.run(family.engine.load_policy(adapters=[str(adapter)]))
    stale = probe()
    assert stale.cache_gap > 10 * TOLERANCE and stale.num_stale > num_tokens / 2
    assert abs(stale.logp - right) > 1.0, "with nothing taken from the cache it is the new policy's"
    family.run(family.engine.load_policy(adapters=[]))
    first, second = probe(), probe()
    assert (first.num_stale, second.num_stale > num_tokens / 2) == (0, True)
    assert max(first.cache_gap, second.cache_gap) < TOLERANCE
    assert first.logp == pytest.approx(right, abs=TOLERANCE) == second.logp


@pytest.mark.parametrize("family", ["llava"], indirect=True)
def test_a_version_that_is_taken_back_leaves_nothing_behind(family: Family) -> None:
    """And its number goes to another adapter, of other layers. All families go back alike."""
    ask, num_tokens = family.prompts[0].ask, 200  # several blocks of the cache
    answer = (sum(family.answers, ()) * num_tokens)[:num_tokens]
    first, refused, better = (
        random_adapter(family, targets=targets, seed=seed)
        for seed, targets in ((11, "q_proj"), (12, ALL_TARGETS), (13, "o_proj|up_proj"))
    )
    checksums: dict[tuple[Path, ...], str] = {}
    for adapters in ((first,), (first, refused), (first,), (first, better), (first,), (), (better,), ()):
        loaded = family.run(family.engine.load_policy(adapters=[str(adapter) for adapter in adapters]))
        assert checksums.setdefault(adapters, loaded.checksum) == loaded.checksum
        assert (loaded.wrong_tensors, loaded.num_unseen) == ((), 0)
        reply = family.run(family.engine.probe(ask, answer_ids=answer))
        assert reply.num_stale == 0 and reply.cache_gap < TOLERANCE
        assert family.served_logps() == pytest.approx(family.expected_logps(*adapters), abs=TOLERANCE)
    assert len(set(checksums.values())) == len(checksums) == 5


def test_an_engine_that_does_not_empty_its_prefix_cache_serves_no_new_policy(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.generate.engine._RESET_S", 0.2)
    refused = AsyncMock(return_value=False)
    with (
        patch.object(family.engine._llm, "reset_prefix_cache", refused),
        pytest.raises(RuntimeError, match="did not empty its prefix cache"),
    ):
        family.run(family.engine.load_policy(adapters=[]))
    assert refused.await_count > 1, "asked again while requests may still end"
    family.run(family.engine.load_policy(adapters=[]))


def test_every_end_token_of_the_model_ends_an_answer(family: Family) -> None:
    from transformers import GenerationConfig

    prompt = family.prompts[0]
    ends = GenerationConfig.from_pretrained(family.model).eos_token_id
    for end in ends if isinstance(ends, list) else [ends]:
        stops = sorted(family.engine._expansion.tokens.stops)
        sampling = {"max_tokens": 4, "logprobs": 0, "stop_token_ids": stops, "allowed_token_ids": [end]}
        final = family.run(family.engine._final(prompt.ask, **sampling))
        draft = family.engine._draft(final, final.outputs[0])
        assert (draft.ids, draft.ended, draft.stop) == ((end,), True, None)


def make_pairs(family: Family) -> list[Example]:
    logps = [sum(sum(sentence.logps) for sentence in answer) for answer in family.grown]
    answers, num = family.answers, len(family.prompts)
    return [
        preference_pair(
            id=prompt.id,
            image=prompt.image,
            prompt=prompt.text,
            chosen_ids=answers[index],
            rejected_ids=answers[num + index],
            chosen_logp=logps[index],
            rejected_logp=logps[num + index],
        )
        for index, prompt in enumerate(family.prompts)
    ]


def _train(train: Train, *, model: Path, pairs: Sequence[Example], output_dir: Path) -> TrainResult:
    from actors.train.cycle import CycleTrainer

    trainer = CycleTrainer(train, model=model, seed=0)
    trainer.rehearse()
    order = TrainOrder(cycle=Cycle(round_index=0), output_dir=str(output_dir), num_examples_at_most=len(pairs))
    source = EndedStream([write_examples(output_dir.parent / "pairs.parquet", pairs)], len(pairs), is_whole=True)
    result = trainer.train(source, order=order, adapters=(), on_step=lambda *_: None)
    trainer.prepare(())  # lets go of the cycle, so that the next family finds the process free
    return result


def test_round_starts_at_log_two_and_its_adapter_is_served(
    family: Family, training_process: ProcessPoolExecutor
) -> None:
    pairs, output_dir = make_pairs(family), family.directory / "trained"
    result = training_process.submit(
        _train, family.config.train, model=family.model, pairs=pairs, output_dir=output_dir
    ).result(timeout=120)
    assert (result.num_pairs, result.num_steps) == (len(pairs), 1)
    assert result.loss_first == pytest.approx(log(2), abs=1e-4)
    expected = family.expected_logps(output_dir)[: len(pairs)]
    trained = [probe.logp for probe in result.probes]
    assert trained == pytest.approx(expected, abs=TOLERANCE)
    assert max(abs(new - pair.chosen.logp) for new, pair in zip(expected, pairs, strict=True)) > 0.01
    family.run(family.engine.load_policy(adapters=[str(output_dir)]))
    served = family.served_logps()[: len(pairs)]
    assert served == pytest.approx(trained, abs=TOLERANCE)


def test_image_token_in_an_answer_kills_no_engine_and_is_not_trained_on(family: Family) -> None:
    """The model may sample it; what stands behind it would be counted as one more image."""
    pair = make_pairs(family)[0]
    ids = (*pair.rejected.token_ids, family.processor.image_token_id, *pair.chosen.token_ids)
    odd = altered(pair, rejected={"token_ids": ids})
    judge = PairJudge(processor=family.processor, picture_size=picture_size, max_length=512)
    assert (judge(odd), judge(pair)) == ("image_token_in_answer", None)
    ask = family.prompts[0].ask
    grown = family.engine.continuations(ask, prefix_ids=ids, num=2, max_tokens=4, seed=0)
    assert len(family.run(grown)) == 2
    assert not family.engine.has_died
