"""The cards of a run: what is in them, that they follow from the run alone, and that they are in nobody's way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from described_runs import Described, DescribedDriver, cards_in
from huggingface_hub import ModelCard
from report_runs import summary_of
from s3_server import s3_door
from test_gate import by_dose
from test_loop import Driver, save_fake_model
from test_training_free import FreeDriver
from url_runs import UrlDriver, on_machine

from csr_ray.app.place import opened_to_read
from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.report.cards import Subject, is_as_written, model_card, plain_text, set_aside, write_card
from csr_ray.store.run_folder import CARD

ADAPTERS = ("round_000/adapter/README.md", "round_001/adapter/README.md")
ALL = ("model/README.md", *ADAPTERS)
INTERVALS = {"chair_s": [0.3, 0.5], "recall": [0.99, 1.0], "sentences": [2.5, 3.5]}
CHANGE = {"before": 0.42, "after": 0.2, "difference": -0.22, "low": -0.3, "high": -0.1, "p": 0.001, "num_images": 300}


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.policy.weights.save_merged", save_fake_model)


def config_of(**sections: Any) -> Config:
    tree: dict[str, Any] = {
        "run": {"dir": "/home/jane/runs/mine", "rounds": 2},
        "data": {"prompts": "/home/jane/photos/prompts.jsonl"},
        "policy": {"model": "/home/jane/models/base"},
        "scorer": {"model": "/home/jane/models/clip"},
        "eval": {"benchmarks": ["chair"], "data": "/home/jane/heldout"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return parse_config(tree)


def measured() -> dict[str, Any]:
    """A summary of two rounds, with intervals and changes."""
    found = summary_of({"chair_s": 0.2, "recall": 0.99, "sentences": 2.0, "num_images": 300}, {"chair_s": 0.1})
    found["base"]["eval_intervals"] = INTERVALS
    for entry in found["rounds"]:
        entry["eval_intervals"] = {"chair_s": [0.15, 0.25]}
        entry["eval_change"] = {"chair_s": CHANGE}
        entry["method"] = "csr"
    return found


def card(summary: dict[str, Any] | None = None, *, config: Config | None = None, **of: Any) -> str:
    subject = Subject(**{"kind": "model", "version": 2, "adapters": ("round_000/adapter", "round_001/adapter"), **of})
    return model_card(
        measured() if summary is None else summary,
        config=config or config_of(),
        run_name="mine",
        of=subject,
        aside={},
    )


def metadata(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


# ---- when they are written ----


def test_a_run_leaves_a_card_in_every_adapter_and_in_the_model_and_the_checker_finds_nothing(tmp_path: Path) -> None:
    driver = DescribedDriver(tmp_path / "run", rounds=2)
    driver.run()
    found = cards_in(driver.folder.root)
    assert tuple(found) == ALL
    assert all(is_as_written(text) for text in found.values())
    report = driver.check()
    assert report.sound and not report.notes, report
    journal = driver.folder.journal.read_text()
    assert CARD not in journal, "a person may change a card, so no digest is held against it"


def test_adapters_model_and_journal_are_the_same_bytes_with_cards_and_without(tmp_path: Path) -> None:
    class Plain(DescribedDriver):
        def state(self) -> Any:
            return replace(super().state(), write_cards=lambda state, *, has_model: None)

    contents = []
    for kind in (DescribedDriver, Plain):
        driver = kind(tmp_path / kind.__name__, rounds=2)
        driver.run()
        root = driver.folder.root
        names = [path for path in root.rglob("*") if path.parent.name in ("adapter", "model") and path.name != CARD]
        lines = [json.loads(line) for line in driver.folder.journal.read_text().splitlines()]
        digests = [line["files"] for line in lines if line["kind"] in ("train", "finished")]
        contents.append(({path.relative_to(root): path.read_bytes() for path in names}, digests))
    assert contents[0] == contents[1]
    assert len(contents[0][0]) == 5


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_run_that_dies_before_it_writes_them_writes_the_same_ones_later(tmp_path: Path, dies_at: int) -> None:
    whole = DescribedDriver(tmp_path / "run", rounds=2)
    whole.run()
    expected = cards_in(whole.folder.root)
    (tmp_path / "run").rename(tmp_path / "whole")
    driver = DescribedDriver(tmp_path / "run", rounds=2)
    driver.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    assert len(cards_in(driver.folder.root)) < len(expected)
    driver.dies_at = None
    driver.run()
    assert cards_in(driver.folder.root) == expected
    assert driver.check().sound


def test_a_card_that_somebody_has_changed_stays_and_one_that_is_gone_comes_back(tmp_path: Path) -> None:
    driver = DescribedDriver(tmp_path / "run", rounds=1)
    driver.run()
    first = driver.folder.root / ADAPTERS[0]
    mine = first.read_text().replace("# license: the run knows none", "license: mit\n# license: the run knew none")
    first.write_text(mine)
    driver.config = parse_config({**_plain(driver.config), "run": {**_plain(driver.config)["run"], "rounds": 2}})
    driver.folder.config.write_text(yaml.safe_dump(_plain(driver.config)))
    before = (driver.folder.root / ALL[0]).read_text()
    driver.run()
    assert first.read_text() == mine
    after = (driver.folder.root / ALL[0]).read_text()
    assert "after 1 round" in before and "after 2 rounds" in after, "another model, another card"
    assert driver.check().sound

    (driver.folder.root / ADAPTERS[1]).unlink()
    assert driver.check().sound, "no line names it"


def _plain(config: Config) -> dict[str, Any]:
    from csr_ray.config.load import to_plain

    return to_plain(config)


def test_what_is_as_written_is_written_over_and_what_is_not_is_left(tmp_path: Path) -> None:
    path, old, new = tmp_path / CARD, card(version=1), card()
    write_card(path, text=old)
    write_card(path, text=new)
    assert path.read_text() == new
    for changed in (new.replace("# mine", "# Mine"), new.rsplit("<!--", 1)[0], "", new + "\nmore\n"):
        path.write_text(changed)
        write_card(path, text=old)
        assert path.read_text() == changed


def test_a_run_at_a_url_has_its_cards_there_and_brings_them_to_another_machine(tmp_path: Path) -> None:
    class DescribedUrlDriver(Described, UrlDriver):
        pass

    with s3_door() as door, on_machine(tmp_path / "first"):
        assert door is not None
        run = DescribedUrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path)
        run.run_here()
        with opened_to_read(run.url, key="RUN_DIR") as copy:
            first = cards_in(copy.root)
        assert tuple(first) == ALL
        assert first == cards_in(run.folder.root)
        assert run.check().sound
        with on_machine(tmp_path / "second"):
            more = DescribedUrlDriver(run.url, place=tmp_path, rounds=3)
            more.run_here()
            with opened_to_read(run.url, key="RUN_DIR") as copy:
                second = cards_in(copy.root)
            assert set(second) == {*ALL, "round_002/adapter/README.md"}
            assert second[ADAPTERS[0]] == first[ADAPTERS[0]]
            assert second[ALL[0]] != first[ALL[0]]


def test_a_card_that_cannot_be_made_is_said_and_ends_no_run(tmp_path: Path) -> None:
    class Unlucky(DescribedDriver):
        def state(self) -> Any:
            def fail(state: Any, *, has_model: bool) -> None:
                raise KeyError("a figure")

            return replace(super().state(), write_cards=fail)

    driver = Unlucky(tmp_path / "run", rounds=1)
    assert driver.run()["finished"]
    assert (
        "README.md of the adapters or the model could not be written: KeyError('a figure')" in driver.said.getvalue()
    )


def test_of_a_run_that_ended_early_the_refused_adapter_has_none_and_the_model_says_so(tmp_path: Path) -> None:
    driver = DescribedDriver(tmp_path / "run", num_prompts=40, rounds=2, unit=8)
    driver.health = by_dose(0.0, version=2)
    driver.run()
    found = cards_in(driver.folder.root)
    assert tuple(found) == ALL[:2]
    assert "This run ended early: round 2 was refused" in found[ALL[0]]
    assert "ended early" not in found[ADAPTERS[0]]
    assert driver.check().sound


def test_the_base_model_of_a_run_that_kept_it_is_called_so(tmp_path: Path) -> None:
    driver = DescribedDriver(tmp_path / "run", num_prompts=40, rounds=2, unit=8)
    driver.health = by_dose(0.0, version=1)
    driver.run()
    (text,) = cards_in(driver.folder.root).values()
    assert "The weights here are those of the base model" in text and "unchanged" in text


def test_a_method_that_trains_nothing_says_that_its_figures_are_of_the_decoding(tmp_path: Path) -> None:
    class DescribedFreeDriver(Described, FreeDriver):
        pass

    driver = DescribedFreeDriver(tmp_path / "run")
    driver.run()
    (text,) = cards_in(driver.folder.root).values()
    assert "unchanged. vdd trains nothing: it changes how answers are decoded" in text
    assert "decoded by `decoding.kind: vdd`" in text


# ---- what is in them ----


def test_the_hub_reads_the_metadata_with_every_figure_and_its_interval() -> None:
    config = config_of(
        policy={"model": "llava-hf/llava-1.5-7b-hf"}, data={"prompts": "hf://datasets/a/b/train.parquet"}
    )
    text = card(config=config, version=1, adapters=("round_000/adapter",))
    found = metadata(text)
    assert found["base_model"] == "llava-hf/llava-1.5-7b-hf" and found["base_model_relation"] == "finetune"
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert found["datasets"] == ["a/b"] and {"csr_ray", "csr"} <= set(found["tags"]) and "license" not in found
    results = {one.metric_type: one for one in ModelCard(text).data.eval_results}
    assert results["chair_s"].metric_value == 0.2
    assert results["chair_s"].metric_args == {"interval_95": [0.15, 0.25]}
    assert results["recall"].dataset_name == "CHAIR"
    adapter = metadata(card(config=config, kind="adapter", rank=16))
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter") and "lora" in adapter[
        "tags"
    ]


def test_figures_stand_with_their_intervals_beside_the_bases_and_say_what_is_chance() -> None:
    text = card(version=1, adapters=("round_000/adapter",))
    assert "| 42.0 % (30.0 to 50.0) | 20.0 % (15.0 to 25.0) | −22.0 points (−30.0 to −10.0) |" in text
    summary = measured()
    summary["rounds"][0]["eval_change"]["chair_s"] = {**CHANGE, "high": 0.1}
    assert "−22.0 points (−30.0 to +10.0), within chance |" in card(summary, version=1)
    summary["rounds"][0]["eval_change"]["chair_s"] = {
        **CHANGE,
        "before": 0.2,
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
    }
    assert "| none |" in card(summary, version=1)


def test_a_round_speaks_of_itself_and_what_came_before_and_never_of_what_comes_after() -> None:
    summary = measured()
    early = card(summary, kind="adapter", version=1, adapters=("round_000/adapter",), rank=16)
    summary["rounds"].append({**summary["rounds"][1], "round": 2, "policy_version": 3})
    assert early == card(summary, kind="adapter", version=1, adapters=("round_000/adapter",), rank=16)
    assert early.count("\n| 1 | 4 | 4 | 2 same text |") == 1 and "\n| 2 | 4 |" not in early


def test_no_path_of_the_machine_is_in_a_card() -> None:
    for kind in ("model", "adapter", "adapters"):
        text = card(kind=kind, rank=32)
        assert "jane" not in text and "/home" not in text
    assert "`base` (a local model folder)" in text
    assert "Say it before you publish" in text


def test_a_secret_in_a_url_is_in_no_card() -> None:
    config = config_of(policy={"model": "s3://bucket/models/base"})
    text = card(config=config)
    assert "`base` (a model at a URL)" in text and "bucket" not in text


def test_words_of_the_data_are_no_markup() -> None:
    assert plain_text("a|b\n<script> `x` [y](z)") == r"a\|b \<script\> \`x\` \[y\](z)"
    summary = measured()
    summary["rounds"][0]["pairs"]["dropped"] = {"<b>|": 3}
    assert r"3 \<b\>\|" in card(summary)


def test_what_was_set_aside_is_counted_by_reason_without_names_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    reasons = [
        "image /home/jane/a: jane.png: no such file", "image c.png: no such file",
        "image d.png: 3 x 50 pixels; at least 4 a side are needed", "image e.png: 1 x 1 pixels; at least 4 a side",
        "image f.jpg: cannot be decoded: image file is truncated (113 bytes)", "see /home/jane", "id is missing",
    ]  # fmt: skip
    path.write_text("".join(json.dumps({"id": "x", "reason": reason}) + "\n" for reason in reasons) + "{torn")
    found = set_aside(path)
    assert found == {
        "n x n pixels": 2, "other reasons": 2, "no such file": 1, "cannot be decoded": 1, "id is missing": 1,
        "a line that cannot be read": 1,
    }  # fmt: skip
    assert set_aside(tmp_path / "none") == {}
    text = model_card(
        measured(), config=config_of(), run_name="mine", of=Subject(kind="model", version=2), aside=found
    )
    assert "Of the data 8 inputs were left out: " in text and " 2 n x n pixels" in text


def test_a_phase_in_the_middle_of_a_round_says_that_nothing_was_measured_of_it() -> None:
    summary = measured()
    for entry in summary["rounds"]:
        entry["phases"] = [{**entry, "phase": name} for name in ("warm", "main")]
    summary["rounds"][0]["policy_version"], summary["rounds"][1]["policy_version"] = 2, 4
    names = ("round_000/adapter", "round_000/main/adapter", "round_001/adapter")
    text = card(summary, kind="adapter", version=3, adapters=names, rank=16)
    assert "Nothing was measured of this version: the run evaluates at the end of its rounds." in text
    assert "on top of the 2 adapters before it" in text
    assert 'f"{run}/round_000/main/adapter"' in text
    assert "| 1, warm | 4 |" in text and "model-index" not in metadata(text)


def test_a_run_without_a_benchmark_claims_nothing() -> None:
    summary = summary_of(None, None, base=None)
    text = card(summary, config=config_of(eval={"benchmarks": [], "data": None}))
    assert "the run had no benchmark (eval.benchmarks)" in text
    assert "Whether it is better than its base" in text and "model-index" not in metadata(text)


def test_the_rank_that_the_server_makes_room_for_is_one_that_vllm_has() -> None:
    text = card(kind="adapters", rank=48)
    assert "--enable-lora --max-lora-rank 64 --lora-modules policy=path/to/this/folder" in text
    alone = card(kind="adapter", rank=16)
    assert "vllm serve" not in alone and "--what adapter --round 2" in alone


@pytest.mark.parametrize(("start", "says"), [(True, True), (False, False), (None, None)])
def test_a_server_is_asked_for_the_first_token_where_the_template_leaves_it_out(
    start: bool | None, says: bool | None
) -> None:
    text = card(leaves_start_to_tokenizer=start)
    in_code = 'extra_body={"add_special_tokens": True},' in text
    assert in_code is (says is True)
    assert ("needs `extra_body" in text) is (says is None)


def test_the_code_of_a_card_is_python() -> None:
    for kind in ("model", "adapter", "adapters"):
        for config in (config_of(), config_of(policy={"visual_tokens": 8})):
            blocks = re.findall(r"```python\n(.*?)```", card(kind=kind, rank=16, config=config), re.DOTALL)
            assert blocks
            for block in blocks:
                compile(block, "card", "exec")


def test_a_model_that_merges_tokens_says_what_it_needs() -> None:
    text = card(config=config_of(policy={"visual_tokens": 8}))
    assert "merge_before(model.model.multi_modal_projector, kept=model.config.visual_tokens)" in text
    assert "--model-class-overrides '{\"MergedLlava" in text


def test_the_embedded_world_is_named_by_the_command_that_makes_it(tmp_path: Path) -> None:
    world = {"enabled": True, "variant": 3, "seed": 5}
    places = {"policy": {"model": "${world}/policy"}, "scorer": {"model": "${world}/clip"}}
    text = card(config=config_of(world=world, **places))
    assert "the tiny LLaVA of csr_ray's embedded world (variant 3, seed 5)" in text
    assert "`csr-ray world build DIR --variant 3 --seed 5`" in text
    assert "No figure here says anything about photos" in text
    assert "base_model" not in metadata(text)


def test_drivers_without_the_hook_write_none(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run")
    driver.run()
    assert cards_in(tmp_path) == {}
