"""Half of a picture's tokens on the real engine and in the trainer: both see the same policy, before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from fakes import preference_pair, tiny_config
from training_examples import EndedStream, write_examples

from actors.generate.engine import EngineSettings, VllmEngine
from actors.process.counters import Counting
from csr_ray.app.run import world_spec
from csr_ray.config.schema import Config, Train, World
from csr_ray.data.chat import prompt_text
from csr_ray.errors import ReferenceGapError
from csr_ray.policy.visual_tokens import merged_config
from csr_ray.policy.weights import save_merged
from csr_ray.records import Ask, Cycle, Example, Picture, TrainOrder, TrainResult
from csr_ray.world.build import cached_world

NUM_PICTURES = 6
KEPT = 8  # of 16
TRAIN = {
    "batch_size": 2,
    "lora_rank": 4,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.0,
    "epochs": 1,
    "dtype": "float32",
    "threads": 1,
    "max_length": 256,
    "reference": "check",
    "reference_tolerance": 1e-4,
}


def test_engine_and_trainer_have_the_same_policy_of_half_the_tokens(
    training_process: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    world = cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)
    base, asks, saved = world / "policy", _asks(world), tmp_path / "model"
    pairs = asyncio.run(_pairs(base, asks=asks))
    result = training_process.submit(_train, base, pairs, tmp_path / "trained", KEPT).result(timeout=300)
    assert result.metrics["reference_gap/max"] < 1e-5
    # The saved model says of itself how many tokens it keeps, and an engine need not be told.
    save_merged(base, adapters=[Path(result.adapter)], output=saved, config_lines=merged_config(KEPT))
    trained = [probe.logp for probe in result.probes]
    assert asyncio.run(_probed(saved, result=result)) == pytest.approx(trained, abs=1e-3)
    # Of all the tokens the trainer's policy is another one, and the check of the reference notices.
    with pytest.raises(ReferenceGapError, match=r"^train\.reference = 'check': "):
        training_process.submit(_train, base, pairs, tmp_path / "other", None).result(timeout=300)


def _asks(world: Path) -> list[Ask]:
    images = sorted((world / "heldout" / "images").iterdir())[:NUM_PICTURES]
    return [Ask(picture=Picture(path=str(image)), text="Describe this image in detail.") for image in images]


def _config(model: Path, *, kept: int | None) -> Config:
    return tiny_config(
        policy={"model": str(model), "dtype": "float32", "max_model_len": 256, "visual_tokens": kept},
        generators={"kv_cache_gib": 0.1, "max_num_seqs": 8},
    )


async def _pairs(model: Path, *, asks: Sequence[Ask]) -> list[Example]:
    """A greedy answer to each question against a sampled one, by an engine that merges."""
    from vllm.inputs import TextPrompt
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    engine = VllmEngine(
        EngineSettings.of(_config(model, kept=KEPT)), model=model, counting=Counting(actor="generator")
    )
    await engine.start()
    try:
        first = asks[0]
        image = await engine._image(first.picture)
        rendered = await engine._render(engine._prompt_ids(first.text), image=image, key="not asked again")
        assert rendered["prompt_token_ids"].count(engine._processor.image_token_id) == KEPT
        text = prompt_text(engine._processor, question=first.text)
        prompt = TextPrompt(prompt=text, multi_modal_data={"image": image})
        parsed = parse_model_prompt(engine._llm.model_config, prompt)
        (as_text,) = await engine._llm.renderer.render_cmpl_async([parsed])
        assert as_text["prompt_token_ids"] == rendered["prompt_token_ids"], "as vLLM's own server is asked"
        pairs = []
        for index, ask in enumerate(asks):
            greedy = await engine.answer(ask, temperature=0.0, max_tokens=32, seed=0)
            sampled = await engine.answer(ask, temperature=1.5, max_tokens=32, seed=index)
            pairs.append(
                preference_pair(
                    id=f"pair-{index}",
                    image=ask.picture.path,
                    prompt=ask.text,
                    chosen_ids=greedy.token_ids,
                    rejected_ids=sampled.token_ids,
                    chosen_logp=sum(greedy.logps),
                    rejected_logp=sum(sampled.logps),
                )
            )
        return pairs
    finally:
        engine.close()


async def _probed(model: Path, *, result: TrainResult) -> list[float]:
    engine = VllmEngine(
        EngineSettings.of(_config(model, kept=None)), model=model, counting=Counting(actor="generator")
    )
    await engine.start()
    try:
        return [await engine.answer_logp(probe.ask, answer_ids=probe.answer_ids) for probe in result.probes]
    finally:
        engine.close()


def _train(model: Path, pairs: Sequence[Example], output_dir: Path, kept: int | None) -> TrainResult:
    from actors.train.cycle import CycleTrainer

    trainer = CycleTrainer(Train(**TRAIN), model=model, seed=0, visual_tokens=kept)
    trainer.rehearse()
    output_dir.mkdir()
    order = TrainOrder(
        cycle=Cycle(round_index=0), output_dir=str(output_dir / "adapter"), num_examples_at_most=len(pairs)
    )
    source = EndedStream([write_examples(output_dir / "pairs.parquet", pairs)], len(pairs), is_whole=True)
    try:
        return trainer.train(source, order=order, adapters=(), on_step=lambda *_: None)
    finally:
        trainer.prepare(())
