"""The page of a run: honest, escaped, bounded in size, there for half-finished runs too."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import within
from report_runs import ATTACK, EVAL, facts_of, gallery_of, page, png, summary_of, words, write_round, write_summary

from csr_ray.config.schema import Cluster, GpuKindKeys
from csr_ray.counters import Usage
from csr_ray.errors import UserError
from csr_ray.machine.cost import cost
from csr_ray.records import Ask, Example, Picture, Target
from csr_ray.report import write_report
from csr_ray.report.embedded import MOST_PAIRS_A_ROUND
from csr_ray.report.gallery import NUM_COLOURS, RewardScale
from csr_ray.report.pairs import PairTable
from csr_ray.store.places import Place
from csr_ray.store.tables import Outcome, write_example_unit

# ---- what the page shows -------------------------------------------------------------------------------------------


def test_hours_idle_share_and_price_by_role_and_what_has_no_price(tmp_path: Path) -> None:
    write_round(tmp_path)
    summary = summary_of(EVAL)
    usages = [
        Usage(role="generator", kind="H100", gpus=1, cpus=1, held_s=5400, busy_s=2700),
        Usage(role="train_worker", kind="NEW", gpus=1, cpus=1, held_s=3600, busy_s=3600),
    ]
    summary["cost"] = cost(usages, cluster=Cluster(gpu_kinds={"H100": GpuKindKeys(usd_per_hour=3.0)}))
    write_summary(tmp_path, summary=summary)
    text = words(page(tmp_path))
    assert "generators 1.5 1.5 50.0 % $4.50" in text
    assert "train workers 1 1 0.0 % –" in text and "all 2.5 2.5 30.0 % –" in text
    assert "$3 an hour of a H100; no price is known of NEW: set cluster.gpu_kinds.NAME.usd_per_hour" in text
    summary["cost"] = {"roles": {ATTACK: {"gpu_hours": "many"}}, "prices": [], "unpriced": 3}
    write_summary(tmp_path, summary=summary)
    assert "<script>alert" not in page(tmp_path)


def test_text_from_data_cannot_become_markup(tmp_path: Path) -> None:
    run = tmp_path / "<b>run"
    run.mkdir()
    write_round(run, text=ATTACK, prompt=f"What? {ATTACK}</script>", id=f"p0{ATTACK}")
    summary = summary_of(EVAL)
    summary["versions"][ATTACK] = ATTACK
    summary["rounds"][0]["pairs"]["dropped"] = {ATTACK: 1}
    summary["rounds"][0]["stages"] = {ATTACK: 5.0}
    write_summary(run, summary=summary)
    (run / "config.yaml").write_text(f"method: csr\npolicy:\n  model: \"{ATTACK}\"\n")  # fmt: skip
    (run / "quarantine.jsonl").write_text(json.dumps({"id": ATTACK, "source": ATTACK, "reason": ATTACK}) + "\n")
    html = page(run)
    assert "<script>alert" not in html
    assert "<b>run" not in html
    assert len(re.findall(r"<script[ >]", html)) - len(re.findall(r'<script type="application/json"', html)) == 1
    assert ATTACK in gallery_of(html)["pairs"][0]["prompt"]


def test_page_needs_no_network(tmp_path: Path) -> None:
    write_round(tmp_path)
    html = page(tmp_path)
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", html)
    assert "default-src 'none'" in html


def test_gallery_shows_some_of_many_pairs_from_smallest_to_largest_margin_and_says_so(tmp_path: Path) -> None:
    write_round(tmp_path, num_pairs=700)
    html = page(tmp_path)
    margins = [pair["margin"] for pair in gallery_of(html)["pairs"]]
    assert len(margins) == MOST_PAIRS_A_ROUND
    assert (min(margins), max(margins)) == (0.0, 699.0)
    assert np.diff(sorted(margins)).max() <= 8
    assert f"{MOST_PAIRS_A_ROUND} of 700 pairs" in words(html)
    assert facts_of(html)["num"] == 700


def test_gallery_shows_all_of_few_pairs(tmp_path: Path) -> None:
    write_round(tmp_path, num_pairs=5)
    html = page(tmp_path)
    assert len(gallery_of(html)["pairs"]) == 5
    assert "All 5 pairs" in words(html)


def test_unknown_margins_come_last_in_the_spread(tmp_path: Path) -> None:
    write_round(tmp_path, num_pairs=3)
    path = tmp_path / "round_000" / "pairs.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("chosen_reward")
    pq.write_table(table.set_column(column, "chosen_reward", pa.array([23.0, None, 21.0])), path)
    pairs = PairTable(Place(0, "main", path.parent), path=path)
    assert pairs.spread(2).tolist() == [2, 1]


def test_sentences_carry_their_scores_and_a_colour_of_the_run_s_scale(tmp_path: Path) -> None:
    write_round(tmp_path, num_pairs=3)
    best = gallery_of(page(tmp_path))["pairs"][-1]
    assert best["chosen"]["sentences"] == [
        {"text": "A red circle. 0", "self": 60.0, "image": 22.0, "reward": 22.0, "logp": -1.5, "tokens": 3,
         "colour": NUM_COLOURS - 1}
    ]  # fmt: skip
    assert best["rejected"]["sentences"][0]["colour"] == 0


def test_colours_end_at_the_ends_of_the_scale() -> None:
    scale = RewardScale(low=10.0, high=28.0)
    assert [scale.colour(reward) for reward in (-5.0, 10.0, 19.0, 28.0, 99.0)] == [0, 0, 4, 8, 8]


def test_an_answer_its_tree_does_not_tell_is_shown_as_its_own_text(tmp_path: Path) -> None:
    write_round(tmp_path, chosen="Something else.", rejected_nodes=[7])
    pair = gallery_of(page(tmp_path))["pairs"][0]
    assert pair["chosen"]["sentences"] == [{"text": "Something else."}]
    assert pair["rejected"]["sentences"] == [{"text": "A red circle. 1"}]


def test_chat_messages_and_a_bare_end_of_answer_are_read(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Who is there?"}]
    write_round(
        tmp_path, prompt=chat, chosen=[{"role": "assistant", "content": "A red circle. 0"}], chosen_nodes=[0, 2]
    )
    path = tmp_path / "round_000" / "candidates" / "unit_0.parquet"
    end = {"id": "p0", "node": 2, "text": "", "token_ids": [2], "logp": -0.1, "self_score": 99.0}
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist([*table.to_pylist(), end], schema=table.schema), path)
    pair = gallery_of(page(tmp_path))["pairs"][0]
    assert pair["prompt"] == "Who is there?"
    assert [sentence["text"] for sentence in pair["chosen"]["sentences"]] == ["A red circle. 0"]
    assert pair["chosen"]["sentences"][0]["reward"] == 20.0


# ---- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken", ["nowhere.png", {"bytes": b"not an image", "path": None}, {"bytes": None, "path": None}]
)
def test_a_missing_or_broken_image_costs_only_itself(tmp_path: Path, broken: Any) -> None:
    write_round(tmp_path, image=broken)
    found = gallery_of(page(tmp_path))
    assert found["images"] == []
    assert found["pairs"][0]["image"] is None


@pytest.mark.parametrize("form", ["path", "relative", "bytes", "struct of path", "struct of bytes"])
def test_images_are_found_as_path_or_bytes_and_stored_once(tmp_path: Path, form: str) -> None:
    content = png(60, 60)
    file = tmp_path / "images" / "a.png"
    file.parent.mkdir()
    file.write_bytes(content)
    image = {
        "path": str(file),
        "relative": "images/a.png",
        "bytes": content,
        "struct of path": {"bytes": None, "path": str(file)},
        "struct of bytes": {"bytes": content, "path": "gone.png"},
    }[form]
    write_round(tmp_path, image=image)
    found = gallery_of(page(tmp_path))
    assert [pair["image"] for pair in found["pairs"]] == [0, 0, 0, 0]
    assert len(found["images"]) == 1
    assert found["images"][0]["tiny"]
    assert found["images"][0]["uri"].startswith("data:image/png;base64,")


def test_answers_that_are_imitated_stand_alone_on_the_page(tmp_path: Path) -> None:
    write_round(tmp_path)
    (tmp_path / "round_000" / "pairs.parquet").unlink()
    answer = Target(role="answer", text="A red circle. 0", token_ids=(1,), logp=-1.5, reward=3.0, nodes=(0,))
    examples = [
        Example(
            id=f"p{number}",
            ask=Ask(picture=Picture(path="nowhere.png"), text="What is this?"),
            targets=(replace(answer, reward=float(number)),),
            policy_version=0,
            method="sft",
            seed=0,
        )
        for number in range(3)
    ]
    path = tmp_path / "round_000" / "examples.parquet"
    write_example_unit(path, examples=examples, outcome=Outcome(made=3), num_answers=1)
    html = page(tmp_path)
    found = gallery_of(html)["pairs"]
    assert [(pair["chosen"]["reward"], pair["rejected"], pair["margin"]) for pair in found] == [
        (number, None, None) for number in (0.0, 1.0, 2.0)
    ]
    assert found[0]["chosen"]["sentences"][0]["text"] == "A red circle. 0"
    assert "could not be read" not in words(html)


def test_a_large_run_stays_a_small_page(tmp_path: Path) -> None:
    files = []
    for i in range(80):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(png(320, 240, seed=i))
    write_round(tmp_path, num_pairs=2000)
    path = tmp_path / "round_000" / "pairs.parquet"
    table = pq.read_table(path)
    images = pa.array([str(files[i % len(files)]) for i in range(2000)])
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", images), path)
    assert len(page(tmp_path)) < 2_000_000  # noise is what JPEG packs worst; pictures take a third of it


# ---- runs that are not whole -------------------------------------------------------------------------------------


def test_a_half_finished_run_has_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    write_summary(tmp_path, summary=summary_of({**EVAL, "chair_s": 0.2}))
    (tmp_path / "config.yaml").write_text("run:\n  rounds: 3\n")
    write_round(tmp_path, index=0)
    write_round(tmp_path, index=1)
    (tmp_path / "round_001" / "pairs.parquet").unlink()
    text = words(page(tmp_path))
    assert "CHAIR_s fell from 42.0 to 20.0 % over 1 round" in text
    assert "Round 2 is not finished: 8 nodes so far." in text
    assert "1 of 3 planned rounds are finished" in text


def test_a_file_cut_short_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_round(tmp_path)
    (tmp_path / "round_000" / "candidates" / "unit_1.parquet").write_bytes(b"PAR1 and no more")
    html = page(tmp_path)
    assert "round_000/candidates/unit_1.parquet could not be read" in words(html)
    assert len(gallery_of(html)["pairs"]) == 4


def test_what_is_no_file_is_named_and_not_read(tmp_path: Path) -> None:
    write_round(tmp_path)
    write_round(tmp_path, index=1)
    os.mkfifo(tmp_path / "round_000" / "candidates" / "unit_1.parquet")
    (tmp_path / "round_000" / "candidates" / "unit_2.parquet").mkdir()
    pairs = tmp_path / "round_001" / "pairs.parquet"
    pairs.unlink()
    os.mkfifo(pairs)
    os.mkfifo(tmp_path / "quarantine.jsonl")
    os.mkfifo(tmp_path / "summary.json")
    html = within(lambda: page(tmp_path))
    for name in ("round_000/candidates/unit_1", "round_000/candidates/unit_2", "round_001/pairs"):
        assert f"{name}.parquet could not be read: it is no file" in words(html)
    assert len(gallery_of(html)["pairs"]) == 4


def test_endless_brackets_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_round(tmp_path)
    (tmp_path / "config.yaml").write_text("[" * 3000)
    (tmp_path / "quarantine.jsonl").write_text("[" * 100_000 + "\n")
    (tmp_path / "journal.jsonl").write_text("[" * 100_000 + "\n")
    text = words(page(tmp_path))
    assert "config.yaml could not be read" in text and "no reason given" in text
    (tmp_path / "summary.json").write_text("[" * 100_000)
    assert "summary.json could not be read" in words(page(tmp_path))


def test_before_the_first_round_the_base_figures_come_from_the_journal(tmp_path: Path) -> None:
    line = json.dumps({"kind": "eval", "version": 0, "metrics": EVAL})
    (tmp_path / "journal.jsonl").write_text(line + '\n{"kind": "roll')
    assert "No round is finished yet; 42.0 % of the base model" in words(page(tmp_path))


def test_a_run_without_evaluation_has_a_page(tmp_path: Path) -> None:
    write_round(tmp_path)
    write_summary(tmp_path, summary=summary_of(None, base=None))
    text = words(page(tmp_path))
    assert "1 round made 4 preference pairs; nothing was evaluated." in text
    assert "This run was not evaluated" in text


def test_a_run_without_pairs_has_a_page(tmp_path: Path) -> None:
    write_round(tmp_path, num_pairs=1)
    path = tmp_path / "round_000" / "pairs.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    html = page(tmp_path)
    assert "There are no preference pairs in this run" in words(html)
    assert gallery_of(html)["pairs"] == []


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_that_is_no_run_is_the_user_s_mistake(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "elsewhere"
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match=re.escape(str(folder))):
        write_report(folder)


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_round(tmp_path)
    old = page(tmp_path)

    def fail(*_: Any) -> str:
        raise RuntimeError("no")

    monkeypatch.setattr("csr_ray.report.page.render", fail)
    with pytest.raises(RuntimeError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == old
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_was_set_aside_is_counted_by_reason(tmp_path: Path) -> None:
    reasons = ["no image"] * 3 + ["no prompt"]
    lines = [json.dumps({"id": str(i), "source": "a.jsonl", "reason": reason}) for i, reason in enumerate(reasons)]
    (tmp_path / "quarantine.jsonl").write_text("\n".join([*lines, "{cut"]) + "\n")
    write_round(tmp_path)
    text = words(page(tmp_path))
    assert "5 inputs were left out" in text
    assert "no image 3" in text
    assert "(no reason given) 1" in text
