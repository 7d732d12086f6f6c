"""The whole program on real vLLM, open_clip and DeepSpeed, on a world whose models were trained for seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from killed_run import CONFIG, SAID, SMALL

import csr_ray
from csr_ray.__main__ import main
from csr_ray.app.check import check_run
from csr_ray.app.measured import measured_run
from csr_ray.app.run import run_config
from csr_ray.errors import ConfigError
from csr_ray.machine.cpu_rates import cpu_rates
from csr_ray.machine.forecast import forecast
from csr_ray.machine.workload import workload_of
from csr_ray.records import Cycle, TrainResult
from csr_ray.store.journal import Journal
from csr_ray.store.marked_answers import read_marked_answers
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples

pytestmark = pytest.mark.usefixtures("ray_session")

ROOT = Path(__file__).resolve().parents[2]


def test_every_round_is_trained_published_and_proved(finished: RunFolder) -> None:
    summary = json.loads(finished.summary.read_text())
    assert [entry["policy_version"] for entry in summary["rounds"]] == [1, 2, 3]
    for entry in summary["rounds"]:
        # fp32 on both sides: generator and trainer agree after every round (log-probs of whole answers).
        assert entry["publish"]["max_probe_gap"] < 1e-3
        # The reference is the rollout's own log-probs, so the first step sees policy == reference: loss ln 2.
        assert entry["train"]["loss_first"] == pytest.approx(0.693147, abs=1e-3)
        assert entry["pairs"]["made"] + sum(entry["pairs"]["dropped"].values()) == 12
        assert 0 <= entry["eval"]["chair_s"] <= 1 and 0 <= entry["eval"]["pope_acc"] <= 1
        assert entry["train"]["metrics"]["deepspeed_stage"] == 2
        # Twelve images a round: each through the policy's tower once and through the scorer's at most once, and every
        # continuation found all that its parent had computed.
        rollout, score = entry["rollout"], entry["score"]
        assert 0 < rollout["image_encodes"] <= 12  # the gate has shown the engine some of the pictures before
        assert rollout["continuation_misses"] == 0
        assert rollout["continuations"] > 0 and rollout["prefix_hit_rate"] > 0.3
        assert 0 < rollout["occupancy"] <= 1
        assert 0 < score["image_encodes"] <= 12 and score["mean_wait_ms"] > 0


def test_the_line_of_the_start_names_its_slowest_part(finished: RunFolder) -> None:
    said = (finished.root.parent / SAID).read_text()
    assert "${world}" not in said + finished.summary.read_text()
    assert re.search(r"\d\.0 (images|prompts|answers|pairs|steps)\b(?!/s)", said) is None
    (line,) = [line for line in said.splitlines() if line.startswith("✓ start the machinery")]
    assert re.search(r"\(slowest: (Ray|generator 0|scorer 0), [\w' ]+, \d+ s\)$", line), said


def test_every_pair_is_the_best_answer_of_its_tree_against_the_worst(finished: RunFolder) -> None:
    for one in csr_ray.load_run(finished.root).rounds:
        trees = {tree.id: tree for tree in one.trees()}
        assert len(trees) == 12
        for pair in one.pairs():
            best, worst = trees[pair.id].best, trees[pair.id].worst
            assert best is not None and worst is not None
            assert (best.token_ids, best.reward) == (pair.chosen.token_ids, pair.chosen.reward)
            assert (worst.token_ids, worst.reward) == (pair.rejected.token_ids, pair.rejected.reward)


def test_what_each_role_has_used_is_counted_once(finished: RunFolder) -> None:
    summary = json.loads(finished.summary.read_text())
    cost = summary["cost"]
    assert set(cost["roles"]) == {"generator", "scorer", "train_worker"}
    by_hand_s = summary["seconds"] - summary["start_seconds"]
    for role, used in cost["roles"].items():
        assert 0 < used["actor_hours"] * 3600 < 1.2 * by_hand_s + summary["start_seconds"], (role, used)
        assert 0 <= used["idle_share"] < 1, (role, used)
        of_rounds = sum(entry["cost"]["roles"][role]["actor_hours"] for entry in summary["rounds"])
        assert used["actor_hours"] >= of_rounds - 1e-9  # hours; rounded sums
    # It starts before the others and works in every stage but the training.
    assert cost["roles"]["generator"]["actor_hours"] * 3600 > 0.7 * by_hand_s
    assert cost["roles"]["generator"]["idle_share"] < cost["roles"]["scorer"]["idle_share"]


def test_tensorboard_has_every_step_once_though_the_run_was_killed(finished: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = json.loads(finished.summary.read_text())
    events = EventAccumulator(str(finished.tracker("tensorboard")))
    events.Reload()
    num_steps = sum(entry["train"]["steps"] for entry in summary["rounds"])
    assert [one.step for one in events.Scalars("train/loss")] == list(range(1, num_steps + 1))
    margins = {one.step: one.value for one in events.Scalars("train/rewards/margins")}
    assert margins[num_steps] == pytest.approx(summary["rounds"][-1]["train"]["metrics"]["rewards/margins"])
    assert [one.step for one in events.Scalars("eval/chair_s")] == [0, 1, 2, 3]
    tokens = [one.value for one in events.Scalars("rollout/tokens")]
    # The first round's may have been in the hands of the driver that was killed.
    assert tokens[-2:] == [entry["rollout"]["tokens"] for entry in summary["rounds"][-2:]]


def test_the_trace_of_a_round_says_what_every_actor_did_when(finished: RunFolder) -> None:
    trace = json.loads((finished.traces / "round_001.json").read_text())
    events, entry = trace["traceEvents"], json.loads(finished.summary.read_text())["rounds"][1]
    assert trace["otherData"]["dropped"] == 0
    who = {event["pid"]: event["args"]["name"].split(" (")[0] for event in events if event["name"] == "process_name"}
    assert set(who.values()) == {"driver", "generator 0", "scorer 0", "train worker 0"}

    def of(name: str, *, process: str, ph: str = "X") -> list[dict]:
        return [one for one in events if (one["ph"], one["name"]) == (ph, name) and who[one["pid"]] == process]

    stages = {name: of(name, process="driver")[0] for name in ("roll out", "train", "publish", "check", "evaluate")}
    begun, ended = (of("rollout", process="generator 0", ph=ph) for ph in "be")
    assert len({one["id"] for one in begun}) == len(begun) == len(ended) == 12
    rolled, second_us = stages["roll out"], 1_000_000
    assert all(0 <= one["ts"] - rolled["ts"] <= rolled["dur"] for one in (*begun, *ended)), "one machine, one clock"
    asked = of("gate", process="generator 0", ph="b")
    assert len(asked) == 8 and all(0 <= one["ts"] - stages["check"]["ts"] <= stages["check"]["dur"] for one in asked)
    batches = [one for one in of("batch", process="scorer 0") if one["ts"] <= rolled["ts"] + rolled["dur"]]
    assert sum(one["dur"] for one in batches) / second_us == pytest.approx(entry["score"]["seconds"], abs=1e-3)
    assert sum(one["args"]["sentences"] for one in batches) == entry["score"]["sentences"]
    steps = of("step", process="train worker 0")
    assert len(steps) == entry["train"]["steps"]
    took_s = sum(one["dur"] for one in steps) / second_us
    assert entry["train"]["optimizer_seconds"] <= took_s + 1e-3 and took_s <= stages["train"]["dur"] / second_us
    handed = [of(name, process="generator 0")[0] for name in ("pull", "load", "prove")]
    assert sum(one["dur"] for one in handed) <= stages["publish"]["dur"]
    assert all(one["ts"] >= stages["publish"]["ts"] for one in handed)
    assert of("engine", process="generator 0", ph="C") and of("answer", process="generator 0", ph="b")
    commits = [one["name"] for one in events if one["ph"] == "i" and one["cat"] == "commits"]
    assert "commit usage" in commits
    commits = [name for name in commits if name != "commit usage"]
    assert commits == [
        *["commit rollout"] * 3,
        "commit examples",
        "commit train",
        "commit publish",
        "commit probe",
        "commit verdict",
        "commit eval",
        "commit round",
    ]
    assert sum(one["dur"] for one in stages.values()) / second_us == pytest.approx(entry["seconds"], rel=0.2)


def test_candidates_hold_every_node_of_the_rounds_own_policy(finished: RunFolder) -> None:
    for index in range(3):
        rows = pq.read_table(finished.round(index) / "candidates").to_pylist()
        assert len({row["id"] for row in rows}) == 12
        assert {row["policy_version"] for row in rows} == {index}
        assert all(row["parent"] is None or row["parent"] < row["node"] for row in rows)


def test_pairs_are_what_trl_and_datasets_read(finished: RunFolder) -> None:
    from datasets import load_dataset
    from transformers import AutoProcessor
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    path = finished.pairs(Cycle(round_index=0))
    rows = load_dataset("parquet", data_files=str(path), split="train")
    assert rows[0]["image"].size == (64, 64)
    processor = AutoProcessor.from_pretrained(finished.model)
    batch = DataCollatorForVisionPreference(processor)(
        [{key: row[key] for key in ("image", "prompt", "chosen", "rejected")} for row in rows.select(range(2))]
    )
    assert batch["pixel_values"].shape[0] == 4
    assert int(batch["completion_mask"].sum()) > 0


def test_the_exported_model_gives_the_trainers_last_log_probs_in_plain_transformers_and_plain_vllm(
    finished: RunFolder, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from csr_ray.data.chat import prompt_ids, prompt_text
    from csr_ray.data.pictures import load_picture

    probes = TrainResult.from_plain(Journal(finished.journal).find("train", round=2), adapter="-").probes
    pairs = read_examples(finished.pairs(Cycle(round_index=2)))[: len(probes)]
    asked_and_answered = [(pair.id, pair.ask, pair.chosen.token_ids) for pair in pairs]
    assert probes and [(probe.id, probe.ask, probe.answer_ids) for probe in probes] == asked_and_answered
    processor = AutoProcessor.from_pretrained(finished.model)
    rows = [
        {
            "image": probe.ask.picture.path,
            "prompt_ids": prompt_ids(processor, question=probe.ask.text),
            "answer_ids": list(probe.answer_ids),
        }
        for probe in probes
    ]
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({"model": str(finished.model), "rows": rows}))
    with _plain_vllm(asked) as by_vllm:
        policy = LlavaForConditionalGeneration.from_pretrained(finished.model, dtype=torch.float32).eval()
        by_transformers = []
        for probe in probes:
            inputs = processor(
                text=prompt_text(processor, question=probe.ask.text),
                images=load_picture(probe.ask.picture),
                return_tensors="pt",
            )
            answer = torch.tensor([probe.answer_ids])
            ids = torch.cat([inputs["input_ids"], answer], dim=1)
            with torch.no_grad():
                logits = policy(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
            picked = logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None])
            by_transformers.append(picked[0, -answer.shape[1] :, 0].tolist())
        served = by_vllm()
    for ours, theirs, probe in zip(by_transformers, served, probes, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4), "every token, nats"
        assert [sum(ours), sum(theirs)] == pytest.approx([probe.logp] * 2, abs=1e-3)


@contextmanager
def _plain_vllm(asked: Path) -> Iterator[Callable[[], list[list[float]]]]:
    """vLLM in a process that has none of this project's code, started at once; the call waits for its log-probs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "plain_vllm.py"), str(asked)],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, **settings},
    )

    def answer() -> list[list[float]]:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return json.loads(output.strip().splitlines()[-1])

    try:
        yield answer
    finally:
        process.kill()
        process.wait()


def test_a_finished_run_prints_its_result_without_starting_anything(finished: RunFolder, capsys, monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a finished run started its machinery")

    monkeypatch.setattr("actors.runtime.Runtime.start", refuse)
    overrides = [*SMALL, f"run.dir={finished.root}"]
    assert run_config(str(CONFIG), overrides=overrides, fresh=False, dry_run=False) == 0
    assert "report.html" in capsys.readouterr().out


def test_every_policy_of_the_run_can_be_asked_again_and_says_what_it_said(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`csr-ray ask` on one engine: each policy's answers are those that the run's own evaluation got of it."""
    said = {
        (version, answer.image, answer.question): answer.answer
        for version in range(4)
        for answer in read_marked_answers(finished.marked_answers(version))
        if answer.asked_as == "describe"
    }
    question, num = Counter(question for version, _, question in said if version == 0).most_common(1)[0]
    images = sorted({image for _, image, asked in said if asked == question})
    assert len(images) == num > 1
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.root.rglob("*")}
    page, output = tmp_path / "page.html", tmp_path / "answers.json"
    words = ["ask", str(finished.root), *images, str(broken), question, "--json", str(output), "--out", str(page)]
    assert main(words) == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.root.rglob("*")} == before
    found = json.loads(output.read_text())
    assert [one["label"] for one in found["versions"]] == ["base", *(f"after round {at}" for at in (1, 2, 3))]
    asked = {(one["version"], picture["path"]): one for picture in found["pictures"] for one in picture["answers"]}
    assert {key: one["text"] for key, one in asked.items()} == {
        (version, image): said[version, image, question] for version in range(4) for image in images
    }
    assert len({tuple(asked[version, image]["text"] for image in images) for version in range(4)}) > 1
    sentences = [sentence for one in asked.values() for sentence in one["sentences"]]
    assert sentences and all(0 <= one["image_score"] <= 100 for one in sentences)
    assert len({one["image_score"] for one in sentences}) > 1 and found["scale"]["of"] == "run"
    (aside,) = found["set_aside"]
    assert aside["image"] == str(broken) and "not an image" in aside["reason"]
    assert page.read_text().count("data:image/png;base64,") == len(images)
    shown = capsys.readouterr()
    assert "after round 3" in shown.out and "1 picture set aside" in shown.out
    assert "page:" in shown.err and "page:" not in shown.out, "what is piped is the answers"


def test_a_plan_made_of_the_first_rounds_rates_predicts_the_whole_run(finished: RunFolder) -> None:
    run = measured_run(str(finished.root), key="run.dir")
    assert run is not None and run.num_starts == 2, "it was killed once"
    first = run.first(1)
    expected = workload_of(run.config, num_prompts=32, answers=None)
    work = first.workload(expected, own=expected)
    assumed = cpu_rates(run.config, shape=None, work=work, clip=None, gflops=125.0, num_cores=2)
    rates = first.rates(work, assumed=assumed)
    assert {name for name, cost in rates.items() if not cost.is_measured} == {"end"}
    found = forecast(work, rates=rates)
    planned_s = found.seconds - found.stages["end"]  # which no summary counts
    once_s = run.summary["seconds"] - run.summary["start_seconds"] / 2
    assert planned_s == pytest.approx(once_s, rel=0.25), found.stages


def test_the_checker_calls_it_sound(finished: RunFolder) -> None:
    report = check_run(finished.root)
    assert (report.damage, report.next) == ([], "nothing: the run is finished")
    assert all(phase.open == 0 and phase.prompts == phase.rolled_out for phase in report.phases)


def test_a_run_folder_of_another_config_is_refused(finished: RunFolder) -> None:
    overrides = [*SMALL, f"run.dir={finished.root}", "train.beta=0.3"]
    with pytest.raises(ConfigError, match=r"train\.beta: 0\.1 != 0\.3"):
        run_config(str(CONFIG), overrides=overrides, fresh=False, dry_run=False)
