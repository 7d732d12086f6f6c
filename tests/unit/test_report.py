"""The page and the terminal table of a run: honest, escaped, bounded in size, there for half-finished runs too."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from csr_ray.errors import UserError
from csr_ray.report import write_report
from csr_ray.report.charts import spread_labels
from csr_ray.report.figures import headline, round_figures
from csr_ray.report.gallery import NUM_COLOURS, RewardScale
from csr_ray.report.read import MAX_SHOWN_A_ROUND, spread_over_margins
from csr_ray.report.terminal import print_round_table

EVAL = {"chair_s": 0.42, "chair_i": 0.2, "recall": 0.997, "repeat": 0.03, "sentences": 3.0, "pope_acc": 0.87}
ATTACK = "<script>alert('x')</script>"


def summary_of(*evals: dict[str, Any] | None, base: dict[str, Any] | None = EVAL) -> dict[str, Any]:
    """A summary with one round for each eval."""
    rounds = [
        {
            "round": i,
            "policy_version": i + 1,
            "rollout": {"prompts": 4, "nodes": 40, "tokens": 6000, "seconds": 60.0},
            "score": {"sentences": 40, "seconds": 9.0, "wait_share": 0.1},
            "pairs": {"made": 4, "dropped": {"same_text": 2}, "chosen_reward": 30.0, "rejected_reward": 20.0},
            "train": {"pairs": 4, "steps": 1, "seconds": 30.0, "optimizer_seconds": 18.0, "loss_first": 0.7},
            "publish": {"bytes": 1000, "seconds": 2.0},
            "eval": found,
            "seconds": 100.0,
        }
        for i, found in enumerate(evals)
    ]
    return {"method": "csr", "versions": {"csr_ray": "0.1.0"}, "base": {"eval": base}, "rounds": rounds}


def write_round(
    run: Path, *, index: int = 0, num_pairs: int = 4, text: str = "A red circle.", image: Any = None, **pair: Any
) -> None:
    """A round folder: each tree has two answers of one sentence, nodes 0 (chosen) and 1; margins are 0, 1, 2, ..."""
    folder = run / f"round_{index:03d}"
    (folder / "candidates").mkdir(parents=True)
    nodes, pairs = [], []
    for i in range(num_pairs):
        for node, reward in ((0, 20.0 + i), (1, 20.0)):
            nodes.append(
                {
                    "id": f"p{i}",
                    "node": node,
                    "parent": None,
                    "depth": 1,
                    "text": f"{text} {node}",
                    "token_ids": [1, 2, 3],
                    "logp": -1.5,
                    "self_score": 60.0,
                    "image_score": reward,
                    "reward": reward,
                    "final": True,
                    "kept": True,
                    "policy_version": index,
                }
            )
        pairs.append(
            {
                "id": f"p{i}",
                "image": "nowhere.png" if image is None else image,
                "prompt": "What is this?",
                "chosen": f"{text} 0",
                "rejected": f"{text} 1",
                "chosen_reward": 20.0 + i,
                "rejected_reward": 20.0,
                "chosen_logp": -1.5,
                "rejected_logp": -2.5,
                "chosen_nodes": [0],
                "rejected_nodes": [1],
                **pair,
            }
        )
    pq.write_table(pa.Table.from_pylist(nodes), folder / "candidates" / "unit_0.parquet")
    if pairs:
        pq.write_table(pa.Table.from_pylist(pairs), folder / "pairs.parquet")


def write_summary(run: Path, *, summary: dict[str, Any]) -> None:
    (run / "summary.json").write_text(json.dumps(summary))


def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def gallery_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def words(html: str) -> str:
    """The visible text, without style and scripts, white space collapsed."""
    bare = re.sub(r"<(style|script).*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", bare).split())


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


# ---- headline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ({"chair_s": 0.031, "recall": 0.99}, "Hallucinating answers fell from 42.0 % to 3.1 % over 1 round"),
        ({"chair_s": 0.5, "recall": 0.99}, "Hallucinating answers rose from 42.0 % to 50.0 % over 1 round"),
        ({"chair_s": 0.4201, "recall": 0.99}, "Hallucinating answers stayed at 42.0 % over 1 round"),
    ],
)
def test_headline_says_fell_only_if_it_fell(after: dict[str, float], says: str) -> None:
    assert headline(round_figures(summary_of(after))) == f"{says}; recall 99.7 % to 99.0 %."


def test_headline_calls_a_change_within_the_noise_neither_a_fall_nor_a_rise() -> None:
    few = headline(round_figures(summary_of({"chair_s": 0.38, "num_images": 50})))
    assert few == "Hallucinating answers 42.0 % to 38.0 % over 1 round, within the noise of 50 answers."
    assert "fell from" in headline(round_figures(summary_of({"chair_s": 0.38, "num_images": 5000})))


def test_headline_speaks_of_the_last_round_not_the_best() -> None:
    assert "rose from 42.0 % to 60.0 % over 2 rounds" in headline(
        round_figures(summary_of({"chair_s": 0.1}, {"chair_s": 0.6}))
    )


def test_headline_owns_up_to_shorter_answers() -> None:
    text = headline(round_figures(summary_of({"chair_s": 0.1, "sentences": 1.2})))
    assert text.endswith("answers 3.0 to 1.2 sentences long.")


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        (summary_of(), "No round is finished yet; 42.0 % of the base model's answers hallucinate."),
        (summary_of(base=None), "No round is finished yet."),
        ({}, "No round is finished yet."),
        (
            summary_of(EVAL, base=None),
            "42.0 % of the answers hallucinate after round 1; the base model was not evaluated.",
        ),
        (summary_of({"chair_s": float("nan")}, base=None), "1 round made 4 preference pairs; nothing was evaluated."),
    ],
)  # fmt: skip
def test_headline_claims_nothing_that_was_not_measured(summary: dict[str, Any], says: str) -> None:
    assert headline(round_figures(summary)) == says


def test_page_marks_a_worse_figure_as_worse(tmp_path: Path) -> None:
    write_summary(tmp_path, summary=summary_of({**EVAL, "chair_s": 0.52, "recall": 0.9, "pope_acc": 0.9}))
    text = words(page(tmp_path))
    assert "+10.0 pts worse" in text
    assert "−9.7 pts worse" in text
    assert "+3.0 pts better" in text
    assert "fell from" not in text


# ---- what the page shows -------------------------------------------------------------------------------------------


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
    assert len(re.findall(r"<script[ >]", html)) == 2
    assert ATTACK in gallery_of(html)["pairs"][0]["prompt"]


def test_page_needs_no_network(tmp_path: Path) -> None:
    write_round(tmp_path)
    html = page(tmp_path)
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", html)
    assert "default-src 'none'" in html


def test_gallery_shows_some_of_many_pairs_from_smallest_to_largest_margin_and_says_so(tmp_path: Path) -> None:
    write_round(tmp_path, num_pairs=200)
    html = page(tmp_path)
    margins = [pair["margin"] for pair in gallery_of(html)["pairs"]]
    assert len(margins) == MAX_SHOWN_A_ROUND
    assert (min(margins), max(margins)) == (0.0, 199.0)
    assert np.diff(sorted(margins)).max() <= 4
    assert f"{MAX_SHOWN_A_ROUND} of 200 pairs" in words(html)


def test_gallery_shows_all_of_few_pairs(tmp_path: Path) -> None:
    write_round(tmp_path, num_pairs=5)
    html = page(tmp_path)
    assert len(gallery_of(html)["pairs"]) == 5
    assert "All 5 pairs" in words(html)


def test_unknown_margins_come_last_in_the_spread() -> None:
    assert spread_over_margins(np.array([3.0, np.nan, 1.0]), num=2).tolist() == [2, 1]


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
    path = tmp_path / "round_000" / "candidates" / "end.parquet"
    end = {"id": "p0", "node": 2, "text": "", "token_ids": [2], "logp": -0.1, "self_score": 99.0}
    schema = pa.schema([("id", pa.string()), ("node", pa.int32()), ("text", pa.string()), ("logp", pa.float64()),
                        ("token_ids", pa.list_(pa.int32())), ("self_score", pa.float64()),
                        ("image_score", pa.float64()), ("reward", pa.float64())])  # fmt: skip
    pq.write_table(pa.Table.from_pylist([end], schema=schema), path)
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
    assert "Hallucinating answers fell from 42.0 % to 20.0 % over 1 round" in text
    assert "Round 1 is not finished: 8 nodes so far." in text
    assert "1 of 3 planned rounds are finished" in text


def test_a_file_cut_short_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_round(tmp_path)
    (tmp_path / "round_000" / "candidates" / "unit_1.parquet").write_bytes(b"PAR1 and no more")
    html = page(tmp_path)
    assert "round_000/candidates/unit_1.parquet could not be read" in words(html)
    assert len(gallery_of(html)["pairs"]) == 4


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


# ---- figures and charts ------------------------------------------------------------------------------------------


def test_stages_do_not_overlap_and_add_up_to_the_round() -> None:
    row = round_figures(summary_of(EVAL))[1]
    assert row.stages == {
        "rollout": 60.0, "train_optimizer": 18.0, "train_setup": 12.0, "publish": 2.0, "other": 8.0
    }  # fmt: skip
    assert row.train_s == 30.0
    assert row.tokens_per_s == 100.0


def test_crowded_labels_keep_apart_and_inside() -> None:
    heights = spread_labels([88.0, 95.0, 99.0], low=0.0, high=100.0)
    assert heights == [70.0, 85.0, 100.0]
    assert spread_labels([10.0, 50.0], low=0.0, high=100.0) == [10.0, 50.0]


# ---- terminal ------------------------------------------------------------------------------------------------------


def printed(summary: dict[str, Any], *, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_round_table(summary, console=console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "num_tables"), [(100, 1), (80, 2)])
def test_terminal_table_fits_and_is_whole(width: int, num_tables: int) -> None:
    lines = printed(summary_of({**EVAL, "chair_s": 0.031}, None), width=width)
    assert max(len(line) for line in lines) <= width
    assert "…" not in "".join(lines)
    assert sum(line.startswith("round") for line in lines) == num_tables
    bodies = [line.split() for line in lines if line[:1].isdigit() or line.startswith("base ")]
    rows = [[cell for body in bodies if body[0] == name for cell in body[1:]] for name in ("base", "1", "2")]
    assert rows[0] == ["42.0%", "20.0%", "99.7%", "3.0%", "87.0%", "3.0", *["-"] * 7]
    assert rows[1] == [
        "3.1%",
        "20.0%",
        "99.7%",
        "3.0%",
        "87.0%",
        "3.0",
        "30.0",
        "20.0",
        "4",
        "60s",
        "30s",
        "2.0s",
        "-",
    ]
    assert rows[2][:6] == ["-"] * 6
    assert "Hallucinating answers fell from 42.0 % to 3.1 % over 1 round" in " ".join(lines)


def test_terminal_table_of_an_empty_summary_is_all_dashes() -> None:
    assert any(line.split() == ["base", *["-"] * 13] for line in printed({}, width=100))


def test_terminal_says_on_how_many_images_when_rounds_differ() -> None:
    summary = summary_of({**EVAL, "num_images": 300}, {**EVAL, "num_images": 1000})
    summary["base"]["eval"]["num_images"] = 1000
    assert "images evaluated: base 1,000, 1 300, 2 1,000" in printed(summary, width=100)
    summary["rounds"][0]["eval"]["num_images"] = 1000
    assert not any("images evaluated" in line for line in printed(summary, width=100))
