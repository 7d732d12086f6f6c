"""What a run is said to have done: the headline, the figures and the terminal table."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import EVAL, page, summary_of, words, write_summary
from rich.console import Console

from csr_ray.report.charts import spread_labels
from csr_ray.report.figures import ending, headline, round_figures
from csr_ray.report.terminal import print_round_table

# ---- headline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ({"chair_s": 0.031, "recall": 0.99}, "CHAIR_s fell from 42.0 to 3.1 % over 1 round"),
        ({"chair_s": 0.5, "recall": 0.99}, "CHAIR_s rose from 42.0 to 50.0 % over 1 round"),
        ({"chair_s": 0.4201, "recall": 0.99}, "CHAIR_s (hallucinating answers) stayed at 42.0 % over 1 round"),
    ],
)
def test_headline_says_fell_only_if_it_fell(after: dict[str, float], says: str) -> None:
    assert headline(round_figures(summary_of(after))) == f"{says}; recall 99.7 to 99.0 %."


def test_headline_calls_a_change_within_the_noise_neither_a_fall_nor_a_rise() -> None:
    few = headline(round_figures(summary_of({"chair_s": 0.38, "num_images": 50})))
    assert few == "CHAIR_s 42.0 to 38.0 % over 1 round, within the noise of 50 images."
    assert "fell from" in headline(round_figures(summary_of({"chair_s": 0.38, "num_images": 5000})))


def sure(**changes: tuple[float, float, float]) -> dict[str, Any]:
    """What summary.json says of changes: {metric: (difference, low, high)}."""
    return {
        name: {"difference": difference, "low": low, "high": high, "p": 0.001, "test": "mcnemar"}
        for name, (difference, low, high) in changes.items()
    }


def test_headline_says_how_sure_the_fall_is() -> None:
    base = {**EVAL, "chair_s": 0.473, "recall": 0.982}
    summary = summary_of({"chair_s": 0.06}, {"chair_s": 0.052, "recall": 0.967, "num_images": 1000}, base=base)
    summary["rounds"][1]["eval_change"] = sure(chair_s=(-0.421, -0.450, -0.390), recall=(-0.015, -0.02, -0.01))
    assert headline(round_figures(summary)) == (
        "CHAIR_s fell from 47.3 to 5.2 % (42.1 points, 95 % interval 39.0 to 45.0) over 2 rounds; "
        "recall 98.2 to 96.7 % (change −2.0 to −1.0 points)."
    )


def test_headline_takes_the_interval_s_word_for_what_is_noise() -> None:
    summary = summary_of({"chair_s": 0.38, "num_images": 5000})
    summary["rounds"][0]["eval_change"] = sure(chair_s=(-0.04, -0.09, 0.01))
    assert headline(round_figures(summary)) == (
        "CHAIR_s 42.0 to 38.0 % over 1 round, within the noise of 5,000 images (change −9.0 to +1.0 points)."
    )
    summary = summary_of({"chair_s": 0.45, "num_images": 50})
    summary["rounds"][0]["eval_change"] = sure(chair_s=(0.03, 0.01, 0.05))
    assert "CHAIR_s rose from 42.0 to 45.0 % (3.0 points, 95 % interval 1.0 to 5.0) over" in headline(
        round_figures(summary)
    )


FEWER = {
    "chair_s": {"before": 0.46, "after": 0.41, "difference": -0.05, "low": -0.08, "high": -0.02, "num_images": 300},
    "recall": {"before": 0.96, "after": 0.98, "difference": 0.02, "low": 0.01, "high": 0.03, "num_images": 300},
    "sentences": {"before": 2.0, "after": 2.5, "difference": 0.5, "low": 0.4, "high": 0.6, "num_images": 300},
}


def asked_of_fewer(*, keeps: tuple[str, ...] = ("before", "after")) -> dict[str, Any]:
    """A base of 1,000 images and a round of 300, as `eval.limit_between` has it; some only know the difference."""
    base = {"chair_s": 0.40, "recall": 0.98, "sentences": 3.0, "num_images": 1000}
    summary = summary_of({"chair_s": 0.41, "recall": 0.98, "sentences": 2.5, "num_images": 300}, base=base)
    summary["rounds"][0]["eval_change"] = {
        name: {key: value for key, value in known.items() if key not in {"before", "after"} - set(keeps)}
        for name, known in FEWER.items()
    }
    return summary


@pytest.mark.parametrize("keeps", [("before", "after"), ()], ids=["now", "of an older run"])
def test_headline_and_cards_are_of_the_questions_that_the_interval_is_of(
    keeps: tuple[str, ...], tmp_path: Path
) -> None:
    summary = asked_of_fewer(keeps=keeps)
    assert headline(round_figures(summary)) == (
        "CHAIR_s fell from 46.0 to 41.0 % of 300 images (5.0 points, 95 % interval 2.0 to 8.0) over 1 round; "
        "recall 96.0 to 98.0 % (change +1.0 to +3.0 points); answers 2.0 to 2.5 sentences long."
    )
    write_summary(tmp_path, summary=summary)
    text = words(page(tmp_path))
    assert "41.0 % −5.0 pts better 95 %: −8.0 to −2.0; of 300 images; base 46.0 %" in text
    assert "98.0 % +2.0 pts better 95 %: +1.0 to +3.0; of 300 images; base 96.0 %" in text
    assert "2.5 +0.5 95 %: +0.4 to +0.6; of 300 images; base 2.0" in text


def test_headline_of_fewer_images_stays_or_is_within_their_noise() -> None:
    summary = asked_of_fewer()
    change = summary["rounds"][0]["eval_change"]["chair_s"]
    change |= {"before": 0.41, "difference": 0.0, "low": -0.03, "high": 0.03}
    assert "stayed at 41.0 % of 300 images over 1 round; recall 96.0 to" in headline(round_figures(summary))
    summary["rounds"][0]["eval_change"]["chair_s"] |= {
        "before": 0.42,
        "difference": -0.01,
        "low": -0.03,
        "high": 0.01,
    }
    assert "CHAIR_s 42.0 to 41.0 % over 1 round, within the noise of 300 images (change −3.0 to +1.0 points)" in (
        headline(round_figures(summary))
    )


@pytest.mark.parametrize(
    "broken", [None, [], {"chair_s": None}, {"chair_s": {"low": "x"}}, {"chair_s": {"low": 0.1}}]
)
def test_headline_does_without_intervals_that_cannot_be_read(broken: Any) -> None:
    summary = summary_of({"chair_s": 0.031})
    summary["rounds"][0]["eval_change"] = summary["rounds"][0]["eval_intervals"] = broken
    assert headline(round_figures(summary)) == "CHAIR_s fell from 42.0 to 3.1 % over 1 round."


def test_page_shows_intervals_and_calls_a_change_within_them_neither_better_nor_worse(tmp_path: Path) -> None:
    summary = summary_of({**EVAL, "chair_s": 0.052, "pope_acc": 0.88, "sentences": 2.4, "num_images": 300})
    summary["base"]["eval_intervals"] = {"chair_s": [0.389, 0.451]}
    summary["rounds"][0]["eval_intervals"] = {"chair_s": [0.03, 0.075], "sentences": [2.3, 2.5]}
    summary["rounds"][0]["eval_change"] = sure(
        chair_s=(-0.368, -0.4, -0.33), pope_acc=(0.01, -0.01, 0.03), sentences=(-0.6, -0.7, -0.5)
    )
    write_summary(tmp_path, summary=summary)
    html = page(tmp_path)
    text = words(html)
    assert "base 42.0 % 38.9 to 45.1" in text and "1 5.2 % 3.0 to 7.5" in text
    assert "−36.8 pts better 95 %: −40.0 to −33.0; base 42.0 %" in text
    assert "+1.0 pts 95 %: −1.0 to +3.0, within the noise; base 87.0 %" in text
    assert "95 %: −0.7 to −0.5; base 3.0" in text
    assert html.count('class="band bad"') == 2, "the wide chart's and the narrow one's"
    assert "(95 % interval 3.0 to 7.5)" in html
    assert re.search(r"<td>300</td></tr>", html), "a count of images is a whole number"


SPLITS = {
    **{f"pope_acc_{split}": 0.8 + at / 100 for at, split in enumerate(("random", "popular", "adversarial"))},
    **{f"pope_f1_{split}": 0.7 + at / 100 for at, split in enumerate(("random", "popular", "adversarial"))},
    **{f"pope_yes_ratio_{split}": 0.5 + at / 100 for at, split in enumerate(("random", "popular", "adversarial"))},
    "pope_mean_f1_of_3_splits": 0.71,
}


def test_page_and_terminal_show_popes_splits_each_and_together(tmp_path: Path) -> None:
    summary = summary_of({**EVAL, **SPLITS}, base={**EVAL, **SPLITS, "pope_acc_random": 0.75})
    summary["rounds"][0]["eval_intervals"] = {
        "pope_acc_random": [0.77, 0.83], "pope_mean_f1_of_3_splits": [0.69, 0.73]
    }  # fmt: skip
    write_summary(tmp_path, summary=summary)
    text = words(page(tmp_path))
    assert "random popular adversarial" in text
    assert "80.0 % 77.0 to 83.0" in text and "71.0 % 69.0 to 73.0" in text and "75.0 %" in text
    lines = printed(summary, width=80)
    assert max(map(len, lines)) <= 80
    heading = next(at for at, line in enumerate(lines) if "random" in line)
    rows = [line.split() for line in lines[heading:]]
    assert ["base", "75.0%", "70.0%", "81.0%", "71.0%", "82.0%", "72.0%", "71.0%"] in rows
    assert ["1", "80.0%", "70.0%", "81.0%", "71.0%", "82.0%", "72.0%", "71.0%"] in rows


def test_a_run_without_splits_says_nothing_of_them(tmp_path: Path) -> None:
    write_summary(tmp_path, summary=summary_of(EVAL))
    assert "adversarial" not in words(page(tmp_path))
    assert not any("adversarial" in line for line in printed(summary_of(EVAL), width=100))


def test_page_names_the_models_of_the_embedded_world_by_their_paths(tmp_path: Path) -> None:
    summary = summary_of(EVAL)
    summary["policy"] = {"name": "/home/me/.cache/csr_ray/worlds/seed0-12ab/policy", "revision": None}
    write_summary(tmp_path, summary=summary)
    (tmp_path / "config.yaml").write_text("policy: {model: '${world}/policy'}\nscorer: {model: '${world}/clip'}\n")
    facts = words(page(tmp_path)).split("Show the resolved config")[0]
    assert "${world}" not in facts
    assert "Policy /home/me/.cache/csr_ray/worlds/seed0-12ab/policy" in facts
    assert "Scorer /home/me/.cache/csr_ray/worlds/seed0-12ab/clip" in facts
    (tmp_path / "summary.json").unlink()
    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"kind": "model", "name": "/worlds/x/policy", "revision": null}\nnot a line\n')
    assert "Scorer /worlds/x/clip" in words(page(tmp_path)), "before the first round is over, too"
    journal.write_text("")
    assert "Scorer embedded world, clip" in words(page(tmp_path))


def test_headline_speaks_of_the_last_round_not_the_best() -> None:
    assert "rose from 42.0 to 60.0 % over 2 rounds" in headline(
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


def test_terminal_and_page_show_the_gate_s_seconds_where_a_round_has_some(tmp_path: Path) -> None:
    summary = summary_of(EVAL, None)
    assert "gate" not in "".join(printed(summary, width=120)), "a run without a gate has no column of it"
    write_summary(tmp_path, summary=summary)
    assert '<th scope="col">gate</th>' not in page(tmp_path)
    summary["rounds"][0]["stages"] = {"rollout": 5.0, "publish": 1.0, "gate": 7.5, "eval": 2.0}
    lines = printed(summary, width=120)
    assert "gate" in "".join(lines)
    assert [line.split()[-2:] for line in lines if line.startswith("1 ")] == [["7.5s", "2.0s"]]
    write_summary(tmp_path, summary=summary)
    assert '<th scope="col">gate</th>' in page(tmp_path)


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
    assert "CHAIR_s fell from 42.0 to 3.1 % over 1 round" in " ".join(lines)


def test_terminal_table_of_an_empty_summary_is_all_dashes() -> None:
    assert any(line.split() == ["base", *["-"] * 5] for line in printed({}, width=100))


def test_terminal_says_on_how_many_images_when_rounds_differ() -> None:
    summary = summary_of({**EVAL, "num_images": 300}, {**EVAL, "num_images": 1000})
    summary["base"]["eval"]["num_images"] = 1000
    assert "images evaluated: base 1,000, 1 300, 2 1,000" in printed(summary, width=100)
    summary["rounds"][0]["eval"]["num_images"] = 1000
    assert not any("images evaluated" in line for line in printed(summary, width=100))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"table": "official", "form": "lure"}, "By the published synonym file and COCO's annotations, lure form."),
        ({"table": "own", "form": "original"}, "stands beside no published figure."),
    ],
)
def test_page_says_by_which_table_chair_is_counted(tmp_path: Path, named: dict[str, str], said: str) -> None:
    write_summary(tmp_path, summary={**summary_of({**EVAL, "num_images": 300}), "chair": named})
    assert said in words(page(tmp_path)).replace("&#39;", "'")


def test_an_early_end_in_the_middle_of_a_round_tells_how_good_the_policy_is_that_it_left() -> None:
    told = summary_of({"chair_s": 0.3})
    told["ended"] = {"round": 1, "phase": "infused", "version": 2, "reason": "refused", "eval": {"chair_s": 0.2}}
    assert "policy version 2: 20.0 % of its answers hallucinate, at a recall of –. Nothing" in ending(told)
    told["rounds"][0]["policy_version"] = 2  # which has a row of its own
    assert "policy version 2. Nothing" in ending(told)


def heads_of_work(summary: dict[str, Any]) -> list[str]:
    """The columns of the terminal's second table, that of what was made."""
    (head,) = (line for line in printed(summary, width=80) if line.startswith("round") and "rollout" in line)
    return head.split()[1:]  # below "reward", where there is such a column, stand "chosen" and "reject."


def test_answers_that_are_imitated_are_not_called_pairs(tmp_path: Path) -> None:
    single = summary_of({"chair_s": float("nan")}, base=None)
    single["rounds"][0]["pairs"]["answer_sentences"] = 2.5
    assert headline(round_figures(single)) == "1 round made 4 answers to imitate; nothing was evaluated."
    assert heads_of_work(single)[:2] == ["chosen", "reject."], "the summary has rewards"
    single["rounds"][0]["pairs"] = {"made": 4, "answer_sentences": 2.5}
    assert heads_of_work(single)[:2] == ["answers", "rollout"]
    both = summary_of({"chair_s": float("nan")}, {"chair_s": float("nan")}, base=None)
    both["rounds"][1]["pairs"]["answer_sentences"] = 2.5
    assert headline(round_figures(both)).startswith("2 rounds made 8 examples; ")
