"""The four targets of mllm-dpo on real vLLM and DeepSpeed, each from its config, and a judge at a real endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import judge_server

from csr_ray.app.run import run_config
from csr_ray.judging.attributes import ATTRIBUTES
from csr_ray.records import Cycle
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples, read_rollouts

pytestmark = pytest.mark.usefixtures("ray_session")

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "methods"
SMALL = (
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "eval.benchmarks=[]",
    "gate.prompts=8",
)


def _run(name: str, folder: RunFolder, *more: str) -> dict[str, Any]:
    overrides = [*SMALL, f"run.dir={folder.root}", *more]
    assert run_config(str(CONFIGS / f"{name}.yaml"), overrides=overrides, fresh=False, dry_run=False) == 0
    (entry,) = json.loads(folder.summary.read_text())["rounds"]
    assert entry["policy_version"] == 1 and entry["score"]["sentences"] == 0
    return entry


def _rollouts(folder: RunFolder) -> list[Any]:
    cycle = Cycle(round_index=0)
    names = Journal(folder.journal).units(**cycle.key).names
    return [one for name in names for one in read_rollouts(folder.candidates(cycle, unit=name))]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Where the run of mllm-dpo's config goes, which a later test looks at again."""
    return RunFolder(tmp_path_factory.mktemp("first") / "run")


@pytest.mark.parametrize("name", ["mllm-dpo", "rejection", "steerlm", "sft"])
def test_a_round_runs_from_its_config(tmp_path: Path, first: RunFolder, name: str) -> None:
    folder = first if name == "mllm-dpo" else RunFolder(tmp_path / "run")
    # The policy of a world that is built quickly says little that is perfect.
    entry = _run(name, folder, *(["annotated.least_quality=8"] if name == "rejection" else []))
    is_pairs = name == "mllm-dpo"
    path = folder.root / "round_000" / ("pairs.parquet" if is_pairs else "examples.parquet")
    examples = read_examples(path)
    assert len(examples) == entry["pairs"]["made"] >= entry["train"]["pairs"] > 0
    assert {example.num_answers for example in examples} == {2 if is_pairs else 1}
    rollouts = _rollouts(folder)
    assert len(rollouts) == entry["rollout"]["prompts"] == 32
    if name == "sft":
        assert entry["rollout"]["tokens"] == 0
        assert {example.preferred.text for example in examples} == {rollout.prompt.truth for rollout in rollouts}
        assert entry["train"]["loss_last"] < 5
        return
    assert all(set(ATTRIBUTES) <= set(rollout.candidates[0].scores) for rollout in rollouts)
    assert len(rollouts[0].candidates) == 4 and entry["rollout"]["tokens"] > 0
    if is_pairs:
        assert all(example.margin is not None and example.margin >= 2 for example in examples)
    if name == "rejection":
        assert all((example.preferred.reward or 0) >= 8 for example in examples)
    if name == "steerlm":
        assert all("helpfulness:" in example.ask.text for example in examples)
        assert entry["pairs"]["made"] > 32, "several answers to a prompt"
    assert "The judge by round" in folder.report.read_text()


def test_an_answer_of_the_policy_is_encoded_as_it_was_sampled(tmp_path: Path, first: RunFolder) -> None:
    """What the policy has said and ended, given as somebody else's answer, has the tokens in which it was said."""
    rated = tmp_path / "rated.jsonl"
    if not first.summary.exists():  # this test is run alone
        _run("mllm-dpo", first)
    said = [
        (rollout.prompt.id, candidate)
        for rollout in _rollouts(first)
        for candidate in rollout.candidates
        if candidate.text.endswith(".") and "\ufffd" not in candidate.text  # bytes that are no text have no way back
    ]
    rated.write_text(
        "\n".join(json.dumps({"id": id, "answer": one.text, **one.scores}) for id, one in said), encoding="utf-8"
    )
    second = RunFolder(tmp_path / "second")
    keys = ("annotated.judge=file", f"annotated.file={rated}", "annotated.objects=[]")
    _run("mllm-dpo", second, "train.epochs=1", "train.reference=check", *keys)
    sampled = {(id, one.text): one for id, one in said}
    again = [(rollout.prompt.id, one) for rollout in _rollouts(second) for one in rollout.candidates]
    assert len(again) > 32
    for id, one in again:
        before = sampled[id, one.text]
        assert one.token_ids == before.token_ids
        assert one.logp == pytest.approx(before.logp, abs=0.05)


def test_a_judge_at_an_endpoint_is_asked_in_the_driver_and_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    good, bad = ({name: value for name in ATTRIBUTES} for value in (4, 1))
    say = json.dumps([{"answer": 1, "reason": "so it is", **good}, {"answer": 2, "reason": "no", **bad}])
    with judge_server() as server:
        server.plan("yes", "500", "say I cannot.", say=say)
        keys = (
            "annotated.judge=endpoint",
            f"judge.url={server.url}",
            "judge.model=tiny-judge",
            "judge.retry_wait_s=0.01",
        )
        entry = _run("mllm-dpo", folder, *keys)
        asked = server.asked()
    assert entry["pairs"]["dropped"]["verdict_unparsed"] == 1 and entry["pairs"]["made"] > 0
    rates = entry["pairs"]["rates"]
    assert rates["judge_replied"]["hits"] == rates["judge_replied"]["of"] > 0 and rates["truth_agrees"]["of"] > 0
    pictures = [message["content"][0]["image_url"]["url"] for one in asked[1:] for message in one["messages"]]
    assert all(url.startswith("data:image/png;base64,") for url in pictures) and len(set(pictures)) > 10
    assert len(folder.judge_replies.read_text().splitlines()) == rates["judge_replied"]["of"] + 1
    cost = json.loads(folder.summary.read_text())["cost"]["judge"]
    assert cost["answers"] == rates["judge_replied"]["of"] + 1 and cost["input_tokens"] == 100 * cost["answers"]
