"""What a run is said to have done: the headline, the figures and the terminal table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from report_runs import EVAL, page, summary_of, words, write_summary
from rich.console import Console

from csr_ray.report.charts import spread_labels
from csr_ray.report.figures import headline, round_figures
from csr_ray.report.terminal import print_round_table

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
