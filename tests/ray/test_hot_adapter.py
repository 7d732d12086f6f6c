"""`generators.publish: adapter` on real engines: base plus one LoRA that is the sum of all rounds'.

Oracle as in test_families: transformers with PEFT's adapters side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, patch

import pytest
import torch
from fakes import train_result
from test_families import ALL_TARGETS, Family, make_pairs, random_adapter, serving

from actors.generate.engine import EngineSettings
from actors.generate.generator import GeneratorActor
from actors.handover.hot_adapter import refusal
from actors.handover.proofs import Proof, noise_of
from actors.handover.registry import Answer, Package
from csr_ray.config.schema import LORA_RANKS
from csr_ray.policy.lora import save_combined
from csr_ray.policy.package import pack_adapter
from csr_ray.records import Ask, Probe, Question

TOLERANCE = 1e-4  # nats a token, fp32


# How LoRAs are switched has nothing to do with the family.
one_family = pytest.mark.parametrize("family", ["llava"], indirect=True)


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with serving(request.param, directory=tmp_path_factory.mktemp(request.param), publish="adapter") as family:
        yield family


@pytest.fixture(scope="module")
def adapters(family: Family) -> list[Path]:
    """Two rounds' adapters that do not change the same layers."""
    return [
        random_adapter(family, targets=targets, seed=seed) for seed, targets in enumerate(("q_proj", ALL_TARGETS))
    ]


class _Registry:
    """The registry actor's answers without Ray; a folder is an adapter's identity."""

    def __init__(self, adapters: list[Path]) -> None:
        self.adapters = list(adapters)
        self.current = len(adapters)

    @property
    def package(self) -> Any:
        return self

    async def remote(self, *, held: tuple[Any, ...]) -> Answer:
        async def arrive(chunk: bytes) -> bytes:
            return chunk

        served: list[Any] = self.adapters[: self.current]
        num_right = sum(one == other for one, other in zip(served, held, strict=False))
        if num_right == self.current:
            return Answer(num_right=num_right, package=None)
        manifest, chunks = pack_adapter(served[num_right], version=num_right + 1, chunk_bytes=5000)
        package = Package(identity=served[num_right], manifest=manifest, chunks=tuple(map(arrive, chunks)))
        return Answer(num_right=num_right, package=package)


def _serve(family: Family, *adapters: Path) -> Any:
    return family.run(family.engine.load_policy(adapters=[str(adapter) for adapter in adapters]))


def _assert_serves(family: Family, *adapters: Path) -> None:
    gaps = [
        abs(served - expected) / len(answer)
        for served, expected, answer in zip(
            family.served_logps(), family.expected_logps(*adapters), family.answers, strict=True
        )
    ]
    assert max(gaps) < TOLERANCE


def _loaded_ids(family: Family) -> set[int]:
    return set(family.run(family.engine._llm.list_loras()))


def _probes(family: Family, *adapters: Path) -> tuple[Probe, ...]:
    """What the trainer would say of these versions' policy."""
    logps = family.expected_logps(*adapters)
    return tuple(
        Probe(id=pair.id, ask=pair.ask, answer_ids=pair.chosen.token_ids, logp=logp)
        for pair, logp in zip(make_pairs(family), logps, strict=False)  # the rejected answers' stand behind
    )


def _proof(family: Family, *adapters: Path) -> Proof:
    trained = train_result(adapter="-", version=len(adapters), probes=_probes(family, *adapters))
    return Proof.of(trained, noise=noise_of(["float32"]), tolerance=TOLERANCE)


def test_ranks_are_those_of_the_engine() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == LORA_RANKS


def test_a_family_for_which_vllm_has_no_lora_is_refused_by_the_key() -> None:
    def reason(architecture: str) -> str:
        config = SimpleNamespace(model="owner/name", architectures=[architecture])
        config.model_impl, config.convert_type = "auto", "none"
        return str(refusal(config))

    assert reason("LlavaForConditionalGeneration") == "None"
    without = reason("LlavaOnevisionForConditionalGeneration")
    assert without.startswith("generators.publish = 'adapter': vLLM has no LoRA for LlavaOnevision")
    assert "policy.model = 'owner/name'" in without and "set generators.publish=merge" in without


def test_engine_serves_base_plus_the_sum_of_all_rounds(family: Family, adapters: list[Path]) -> None:
    """Version by version, as a run goes, and back to the base."""
    for version in (0, 1, 2, 0):
        loaded = _serve(family, *adapters[:version])
        assert (loaded.wrong_tensors, loaded.num_unseen, loaded.max_tensor_gap) == ((), 0, 0.0)
        _assert_serves(family, *adapters[:version])


def test_what_is_sampled_has_the_log_probs_of_the_served_version(family: Family, adapters: list[Path]) -> None:
    _serve(family, *adapters)
    prompt = family.prompts[0]
    first = family.run(family.engine.continuations(prompt.ask, prefix_ids=(), num=1, max_tokens=6, seed=3))[0]
    following = family.engine.continuations(prompt.ask, prefix_ids=first.token_ids, num=1, max_tokens=6, seed=3)
    rest = family.run(following)[0]
    whole = family.run(family.engine.answer(prompt.ask, temperature=0.0, max_tokens=6, seed=0))
    for ids, logps in (
        (first.token_ids + rest.token_ids, first.logps + rest.logps),
        (whole.token_ids, whole.logps),
    ):
        sentence = replace(whole, token_ids=ids, logps=logps)
        grown = replace(family, prompts=(prompt,), grown=((sentence,), (sentence,)))
        assert sum(logps) == pytest.approx(grown.expected_logps(*adapters)[0], abs=TOLERANCE * len(ids))


@one_family
def test_old_version_is_gone_after_the_switch(family: Family, adapters: list[Path]) -> None:
    _serve(family, adapters[0])
    hot = family.engine._hot
    assert hot is not None
    old = hot.request
    _serve(family, *adapters)
    assert _loaded_ids(family) == {hot.request.lora_int_id} != {old.lora_int_id}
    assert [path.name for path in hot._folder.iterdir()] == [hot.request.lora_name]
    assert hot.request.lora_name.startswith("version_002")
    _serve(family)
    assert (_loaded_ids(family), hot.request, list(hot._folder.iterdir())) == (set(), None, [])


def _cached_tokens(family: Family, ask: Ask, *, answer: tuple[int, ...]) -> int:
    final = family.run(family.engine._final(ask, suffix=answer, max_tokens=1, logprobs=0))
    return int(final.num_cached_tokens)


@one_family
def test_a_continuation_does_not_meet_the_cache_of_another_version(family: Family, adapters: list[Path]) -> None:
    ask, num_tokens = family.prompts[0].ask, 200  # several blocks of the cache
    answer = (sum(family.answers, ()) * num_tokens)[:num_tokens]
    family.run(family.engine._llm.reset_prefix_cache())  # of what other tests left; no switch does this
    for version in (1, 2, 0):
        _serve(family, *adapters[:version])
        assert _cached_tokens(family, ask, answer=answer) == 0
        assert _cached_tokens(family, ask, answer=answer) > num_tokens / 2, "its own it meets"
        assert family.run(family.engine.probe(ask, answer_ids=answer)).cache_gap < TOLERANCE


@one_family
@pytest.mark.parametrize("fault", ["exchanged", "zero", "missing"])
def test_a_fault_between_the_adapters_and_the_engine_is_noticed(
    family: Family, adapters: list[Path], fault: str
) -> None:
    """By the tensors, which are named, and without those by the probes."""

    def faulty(tensors: Mapping[str, torch.Tensor], *, output: Path) -> None:
        names = sorted(name for name in tensors if ".layers.1." in name and ("k_proj" in name or "v_proj" in name))
        if not names:  # the first version: the hand-over that goes wrong is the second
            return save_combined(tensors, output=output)
        k_down, k_up, v_down, v_up = names
        planted.extend(names if fault != "zero" else [v_up])
        changed = {
            "exchanged": {k_down: v_down, k_up: v_up, v_down: k_down, v_up: k_up},
            "zero": {v_up: None},
            "missing": {},
        }[fault]
        kept = {name: tensor for name, tensor in tensors.items() if fault != "missing" or name not in names}
        for name, other in changed.items():
            kept[name] = torch.zeros_like(tensors[name]) if other is None else tensors[other].clone()
        return save_combined(kept, output=output)

    planted: list[str] = []
    proof = _proof(family, *adapters)
    _serve(family)
    with patch("csr_ray.policy.lora.save_combined", faulty):
        generator = _generator(family)
        served = family.run(_start_and_publish(generator, _Registry(adapters), probes=proof.probes))
    assert sorted(served.wrong_tensors) == planted
    assert "differ from what was sent" in (proof.fault(served) or "")
    assert "serves other weights" in (proof.fault(replace(served, wrong_tensors=())) or "")
    _serve(family)


def _generator(family: Family) -> GeneratorActor:
    """One around the engine that already runs."""
    generator = GeneratorActor(EngineSettings.of(family.config), model=str(family.model))
    generator._engine.close()
    generator._engine = generator._host.engine = family.engine
    return generator


async def _start_and_publish(generator: GeneratorActor, registry: _Registry, *, probes: Any) -> Any:
    """Started one version late, then brought to the current one."""
    current, registry.current = registry.current, registry.current - 1
    with patch.object(generator._engine, "start", AsyncMock()):
        assert await generator.start(registry) == current - 1
    registry.current = current
    return await generator.publish(probes)


@one_family
def test_generator_that_starts_late_serves_all_versions_and_proves_the_next(
    family: Family, adapters: list[Path]
) -> None:
    third = random_adapter(family, targets="down_proj", seed=5)
    everything = [*adapters, third]
    proof = _proof(family, *everything)
    _serve(family)
    generator = _generator(family)
    served = family.run(_start_and_publish(generator, _Registry(everything), probes=proof.probes))
    assert (served.version, proof.fault(served)) == (3, None)
    assert proof.gap(served) < TOLERANCE * max(len(probe.answer_ids) for probe in proof.probes)
    _assert_serves(family, *everything)
    questions = [Question(id=prompt.id, image=prompt.image, text=prompt.text) for prompt in family.prompts]
    answers = asyncio.wait_for(generator.answer(questions, 0.0, 8, 0), timeout=60)
    assert [answer.policy_version for answer in family.run(answers)] == [3, 3]
    _serve(family)


@one_family
def test_generator_goes_back_and_serves_another_adapter_under_the_same_number(
    family: Family, adapters: list[Path]
) -> None:
    first, refused = adapters
    better = random_adapter(family, targets="down_proj", seed=6)
    _serve(family)
    generator, registry = _generator(family), _Registry([first, refused])
    served = family.run(_start_and_publish(generator, registry, probes=_probes(family, first, refused)))
    assert _proof(family, first, refused).fault(served) is None
    registry.current = 1
    back = family.run(generator.publish(_probes(family, first)))
    assert (back.version, back.num_bytes, _proof(family, first).fault(back)) == (1, 0, None)
    _assert_serves(family, first)
    registry.adapters, registry.current = [first, better], 2
    served = family.run(generator.publish(_probes(family, first, better)))
    assert (served.version, _proof(family, first, better).fault(served)) == (2, None)
    _assert_serves(family, first, better)
    registry.current = 0
    base = family.run(generator.publish(_probes(family)))
    assert (base.version, _proof(family).fault(base), _loaded_ids(family)) == (0, None, set())
    assert generator._receiver is not None
    assert (generator._receiver.adapters, list(generator._receiver._folder.glob("version_*"))) == ([], [])
    _assert_serves(family)


@one_family
def test_more_rank_than_the_engine_has_room_for_is_refused_before_anything_changes(
    family: Family, adapters: list[Path]
) -> None:
    _serve(family, *adapters)
    assert family.config.served_rank() == 16  # three rounds of rank 4
    with pytest.raises(
        ValueError, match=r"rank 20.*room for 16.*train\.lora_rank times run\.rounds.*generators\.publish=merge"
    ):
        _serve(family, *adapters, *adapters, adapters[0])
    _assert_serves(family, *adapters)
    _serve(family)
