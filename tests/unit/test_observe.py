"""The driver's metrics follow from the journal's lines and from the stage that is going on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import tiny_config
from rich.console import Console

from csr_ray.app.console import ConsoleView
from csr_ray.metrics import CATALOGUE
from csr_ray.stages.observe import JournalMetrics, ObservedView
from csr_ray.store.journal import Journal

CYCLE = {"round": 1, "phase": "main"}


class Noted:
    """An exporter that keeps what it is given, by name and the values of the tags."""

    run = "r"

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.looks: list[Callable[[], None]] = []

    def _key(self, name: str, tags: dict[str, str]) -> tuple[str, ...]:
        assert {"run", "role", *tags} == set(CATALOGUE[name].tag_keys), (name, tags)
        return (name.removeprefix("csr_ray_"), *(tags[key] for key in CATALOGUE[name].tag_keys if key in tags))

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        assert CATALOGUE[name].kind == "counter"
        key = self._key(name, tags)
        self.values[key] = self.values.get(key, 0) + value

    def set(self, name: str, value: float, **tags: str) -> None:
        assert CATALOGUE[name].kind == "gauge"
        self.values[self._key(name, tags)] = value

    def forget(self, name: str, **tags: str) -> None:
        self.values.pop(self._key(name, tags), None)

    def observe(self, name: str, value: float, **tags: str) -> None:
        raise AssertionError(name)

    def sample(self, look: Callable[[], None]) -> None:
        self.looks.append(look)

    def close(self) -> None: ...


def unit(*, rejected: tuple[str, ...] = (), **numbers: float) -> dict[str, object]:
    zero = dict.fromkeys(("nodes", "tokens", "sentences", "texts_cut", "seconds", "rollout_s", "score_wait_s"), 0)
    reasons = [{"id": "x", "source": "s", "reason": "a long text of its own", "fault": fault} for fault in rejected]
    return {**CYCLE, "unit": "u", "ids": ["a"], "prompts": 4, "rejected": reasons, **zero, **numbers}


def test_lines_of_the_journal_become_metrics(tmp_path: Path) -> None:
    journal, noted = Journal(tmp_path / "journal.jsonl"), Noted()
    JournalMetrics(journal, exporter=noted, cluster=tiny_config().cluster)
    journal.commit("rollout", **unit(tokens=10, seconds=2.5, rejected=("input", "input", "machine")))
    journal.commit("rollout", **unit(tokens=5, seconds=0.5, texts_cut=1))
    journal.commit(
        "examples", **CYCLE, made=7, dropped={"all equal": 2}, seconds=0.25, chosen_reward=3.0, rejected_reward=1.0
    )
    journal.commit(
        "train", **CYCLE, version=2, num_pairs=7, seconds=9.0, optimizer_s=6.0, loss_first=0.7, loss_last=0.5
    )
    journal.commit(
        "publish", **CYCLE, version=2, bytes=1000, seconds=1.5, max_probe_gap=1e-5, kept=0.9, swallowed=0.2
    )
    journal.commit("eval", version=2, seconds=3.0, metrics={"chair_s": 0.25, "note": "words"})
    journal.commit("round", round=1, wall_s=20.0)
    of_cycle = ("1", "main")
    expected = {
        ("prompts_total", *of_cycle): 8,
        ("tokens_total", *of_cycle): 15,
        ("rollout_seconds_total", *of_cycle): 3.0,
        ("texts_cut_total", *of_cycle): 1,
        ("set_aside_total", "input", *of_cycle): 2,
        ("set_aside_total", "machine", *of_cycle): 1,
        ("examples_made_total", *of_cycle): 7,
        ("examples_dropped_total", "all equal", *of_cycle): 2,
        ("pair_reward", "chosen", *of_cycle): 3.0,
        ("train_examples_total", *of_cycle): 7,
        ("train_optimizer_seconds_total", *of_cycle): 6.0,
        ("train_cycle_loss", "last", *of_cycle): 0.5,
        ("policy_version_trained",): 2,
        ("publish_bytes_total", *of_cycle): 1000,
        ("publish_probe_gap_nats", *of_cycle): 1e-5,
        ("eval_score", "chair_s", "2"): 0.25,
        ("rounds_total",): 1,
        ("journal_lines_total", "rollout"): 2,
    }
    assert {key: noted.values.get(key) for key in expected} == expected
    assert not [key for key in noted.values if "words" in key or "note" in key]


def test_a_resumed_run_exports_the_figures_that_stand_but_counts_nothing_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.commit("eval", version=0, seconds=3.0, metrics={"chair_s": 0.5})
    noted = Noted()
    JournalMetrics(Journal(journal.path), exporter=noted, cluster=tiny_config().cluster)
    assert noted.values == {("eval_score", "chair_s", "0"): 0.5}


def test_what_was_used_is_priced_by_kind_and_summed_by_role(tmp_path: Path) -> None:
    journal, noted = Journal(tmp_path / "journal.jsonl"), Noted()
    kinds = {"MINE": {"usd_per_hour": 2.0}}
    cluster = tiny_config(cluster={"gpu_kinds": kinds, "cpu_usd_per_hour": 0.1}).cluster
    JournalMetrics(journal, exporter=noted, cluster=cluster)
    row = {"cpus": 1.0, "held_s": 1800.0, "busy_s": 900.0}
    journal.commit(
        "usage",
        rows=[
            {"role": "generator", "kind": "MINE", "gpus": 1.0, **row},
            {"role": "generator", "kind": "MINE", "gpus": 2.0, **row},
            {"role": "scorer", "kind": "", "gpus": 0.0, **row},
            {"role": "train_worker", "kind": "nobody knows", "gpus": 1.0, **row},
        ],
    )
    assert noted.values["gpu_seconds", "generator"] == 5400 and noted.values["cpu_seconds", "generator"] == 3600
    assert noted.values["cost_usd", "generator"] == pytest.approx(2.0 * 1.5 + 0.1)
    assert noted.values["cost_usd", "scorer"] == 0.05
    assert noted.values["actor_seconds", "scorer"] == 1800 and noted.values["actor_busy_seconds", "scorer"] == 900
    assert ("cost_usd", "train_worker") not in noted.values, "no price, no figure"
    assert noted.values["gpu_seconds", "train_worker"] == 1800


def test_the_stage_that_is_going_on_is_exported_and_forgotten_when_it_is_over() -> None:
    noted = Noted()
    view = ObservedView(ConsoleView(num_rounds=2, console=Console(quiet=True)), exporter=noted)
    with view.stage("roll out", total=10, unit="prompts", round_index=1) as stage:
        assert noted.values["stage_running", "roll out", "1"] == 1
        stage.advance()
        stage.advance()
        noted.looks[0]()
        assert noted.values["stage_done", "roll out", "1"] == 2 and noted.values["stage_left", "roll out", "1"] == 8
    assert 0 < noted.values.pop(("stage_seconds_total", "roll out", "1")) < 5
    noted.looks[0]()
    assert noted.values == {}
