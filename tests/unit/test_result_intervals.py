"""Every figure of every benchmark has its interval, in the file and on the terminal, over what is independent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import JudgeServer, judge_server
from releases import JUDGE_SAYS, RELEASES, mmbench_rows, official, pope_splits, write_lines

from csr_ray.__main__ import main
from csr_ray.app.console import UnattendedConsole
from csr_ray.app.evaluate import Evaluation, print_evaluation
from csr_ray.config.load import parse_judge
from csr_ray.evaluation.benchmarks.marking import ALL_NAMES, mark_file
from csr_ray.evaluation.statistics import Ratio, WeightedSum, interval, sum_difference, sum_interval
from csr_ray.judging.session import JudgeSession
from csr_ray.store.results import write_result

COUNTED = {"num_images", "ungraded", "unrated"}


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with judge_server() as found:
        yield found


def marked(name: str, folder: Path, *, server: JudgeServer) -> dict[str, Any]:
    answers, truth = RELEASES[name](folder)
    judge = None
    if name in JUDGE_SAYS:
        draws = np.random.default_rng(3).integers(0, 3, size=99)
        server.plan(*(f"say {JUDGE_SAYS[name][at]}" for at in draws))
        config = parse_judge({"url": server.url, "model": "tiny-judge", "concurrency": 1})
        judge = JudgeSession(config, replies=folder / "judge.jsonl", prompt=None)
    return mark_file(name, answers=answers, truth=truth, judge=judge)


def test_every_benchmark_has_a_release_here() -> None:
    assert set(RELEASES) == set(ALL_NAMES)


@pytest.mark.parametrize("name", list(RELEASES))
def test_every_metric_of_every_benchmark_has_its_interval(name: str, tmp_path: Path, server: JudgeServer) -> None:
    found = marked(name, tmp_path, server=server)
    intervals, metrics = found["intervals"], found["metrics"]
    assert list(intervals) == [metric for metric in metrics if metric not in COUNTED]
    for metric, (low, high) in intervals.items():
        assert low <= metrics[metric] + 1e-9 and metrics[metric] - 1e-9 <= high, metric
        assert math.isfinite(low) and math.isfinite(high) and low < high, metric
    assert found["resampled"]["unit"] == ("circular groups" if name == "mmbench" else "images")
    assert found["resampled"]["num"] > 1


@pytest.mark.parametrize("name", list(RELEASES))
def test_the_items_that_a_file_keeps_give_its_metrics_again(name: str, tmp_path: Path, server: JudgeServer) -> None:
    """What `csr-ray compare` reads is the whole of what the figures are made of."""
    from csr_ray.evaluation.item_marks import MarkedItems

    found = json.loads(json.dumps(marked(name, tmp_path, server=server)))
    again = MarkedItems.from_plain(found).values()
    assert {name: again[name] for name in found["intervals"]} == pytest.approx(
        {name: found["metrics"][name] for name in found["intervals"]}, abs=1e-9
    )


def test_popes_splits_have_intervals_each_and_so_has_their_mean(tmp_path: Path) -> None:
    answers, truth = pope_splits(tmp_path)
    found = mark_file("pope", answers=answers, truth=truth)
    assert list(found["intervals"]) == list(found["metrics"])
    low, high = found["intervals"]["mean_f1_of_3_splits"]
    assert low < found["metrics"]["mean_f1_of_3_splits"] < high


def test_questions_about_one_image_are_drawn_together(tmp_path: Path) -> None:
    """Two questions that are right or wrong together are one piece of evidence."""

    def width(num_images: int) -> float:
        folder = tmp_path / str(num_images)
        truth = [{"question_id": at, "image": f"{at % num_images}.jpg", "label": "yes"} for at in range(200)]
        said = [{"question_id": at, "text": "Yes" if at % num_images % 2 else "No"} for at in range(200)]
        result = mark_file(
            "pope",
            answers=write_lines(folder / "said", said),
            truth=write_lines(folder / "truth", truth),
        )
        assert result["resampled"]["num"] == num_images
        low, high = result["intervals"]["accuracy"]
        return float(high - low)

    assert width(20) > 2.5 * width(200)


def test_the_rotations_of_a_question_of_mmbench_are_drawn_together(tmp_path: Path, server: JudgeServer) -> None:
    found = marked("mmbench", tmp_path, server=server)
    num = len(mmbench_rows(40)) // 3
    assert found["resampled"] == {"unit": "circular groups", "num": num}
    low, high = found["intervals"]["accuracy"]
    share = found["metrics"]["accuracy"]
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(share * (1 - share) / num), rel=0.2)


def test_mmes_points_are_drawn_by_image_within_each_subtask(tmp_path: Path, server: JudgeServer) -> None:
    found = marked("mme", tmp_path, server=server)
    num_images = sum(len({row.split("\t")[0] for row in rows}) for rows in official("mme")["lines"].values())
    assert found["resampled"]["num"] == num_images
    points = [items for items in found["items"] if items["marks"].get("existence/accuracy")]
    by_image: dict[str, float] = {}
    for item in points:
        parts = [item["marks"][f"existence/{name}"] for name in ("accuracy", "accuracy+")]
        right, both = (part[0] for part in parts)
        by_image[item["unit"]] = by_image.get(item["unit"], 0.0) + 50 * right + 100 * both
    values = np.array(list(by_image.values()))
    low, high = found["intervals"]["existence"]
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(len(values)), rel=0.25)
    assert found["metrics"]["existence"] == pytest.approx(values.mean())


# ---- sums ---------------------------------------------------------------------------------------------------------


def normal(num: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=num)


def test_a_sum_of_one_part_is_that_part_scaled() -> None:
    ratio = Ratio.mean_of(normal(200, seed=1))
    one, scaled = interval(ratio, seed=0), sum_interval(WeightedSum(((100.0, ratio),)), seed=0)
    assert scaled.value == pytest.approx(100 * one.value)
    assert scaled.high - scaled.low == pytest.approx(100 * (one.high - one.low), rel=0.1)


def test_parts_with_items_of_their_own_vary_by_themselves_and_parts_of_the_same_items_together() -> None:
    values, none = normal(300, seed=1), np.zeros(300)
    ones = np.ones(300)
    together = WeightedSum(((1.0, Ratio(values, ones)), (1.0, Ratio(values, ones))))
    apart = WeightedSum(
        (
            (1.0, Ratio(np.concatenate([values, none]), np.concatenate([ones, none]))),
            (1.0, Ratio(np.concatenate([none, values]), np.concatenate([none, ones]))),
        )
    )
    wide, narrow = sum_interval(together, seed=0), sum_interval(apart, seed=0)
    assert wide.value == pytest.approx(narrow.value)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(math.sqrt(2), rel=0.1)


def test_a_sum_whose_items_are_all_right_is_not_certain() -> None:
    ratio = Ratio.mean_of(np.ones(30))
    found = sum_interval(WeightedSum(((100.0, ratio), (100.0, ratio))), seed=0)
    assert found.value == found.high == 200.0 and 170 < found.low < 195


def test_a_part_of_one_item_says_nothing_of_the_spread() -> None:
    ratio = Ratio(np.array([3.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    other = Ratio(np.array([0.0, 2.0, 5.0]), np.array([0.0, 1.0, 1.0]))
    assert math.isinf(sum_interval(WeightedSum(((1.0, ratio), (1.0, other))), seed=0).low)
    with pytest.raises(ValueError, match="no items"):
        sum_interval(WeightedSum(((1.0, Ratio(np.zeros(3), np.zeros(3))),)), seed=0)
    with pytest.raises(ValueError, match="all have to be over the same"):
        WeightedSum(((1.0, ratio), (1.0, Ratio.mean_of([1.0]))))
    with pytest.raises(ValueError, match="no ratios"):
        WeightedSum(())


def test_sums_hold_the_truth_in_95_of_100_cases() -> None:
    hits = 0
    for trial in range(200):
        draws = np.random.default_rng(trial)
        first, second = draws.normal(1.0, size=40), draws.normal(2.0, size=40)
        none, ones = np.zeros(40), np.ones(40)
        found = sum_interval(
            WeightedSum(
                (
                    (10.0, Ratio(np.concatenate([first, none]), np.concatenate([ones, none]))),
                    (1.0, Ratio(np.concatenate([none, second]), np.concatenate([none, ones]))),
                )
            ),
            seed=trial,
            num_resamples=400,
        )
        hits += found.low <= 12.0 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_a_difference_of_sums_is_paired() -> None:
    values, ones = normal(100, seed=2), np.ones(100)
    before = WeightedSum(((1.0, Ratio(values, ones)), (2.0, Ratio(values, ones))))
    after = WeightedSum(((1.0, Ratio(values + 0.1, ones)), (2.0, Ratio(values + 0.1, ones))))
    found = sum_difference(before, after=after, seed=0)
    assert found.mean == pytest.approx(0.3) and found.low == pytest.approx(0.3) == found.high
    assert sum_difference(before, after=before, seed=0).p == 1.0
    with pytest.raises(ValueError, match="other parts"):
        sum_difference(before, after=WeightedSum(before.parts[:1]), seed=0)
    fewer = Ratio(values[1:], ones[1:])
    with pytest.raises(ValueError, match="another number of items"):
        sum_difference(before, after=WeightedSum(((1.0, fewer), (2.0, fewer))), seed=0)


# ---- what is printed and written ----------------------------------------------------------------------------------


def test_the_terminal_shows_a_row_a_metric_with_its_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, truth = RELEASES["pope"](tmp_path)
    output = tmp_path / "out.json"
    command = ["score-answers", "--benchmark", "pope", "--answers", str(answers), "--truth", str(truth)]
    assert main([*command, "--json", str(output)]) == 0
    said = capsys.readouterr().out
    result = json.loads(output.read_text())
    low, high = result["intervals"]["f1"]
    row = next(line for line in said.splitlines() if line.split()[:1] == ["f1"])
    assert row.split() == ["f1", f"{result['metrics']['f1']:.4f}", f"{low:.4f}", "to", f"{high:.4f}"]
    assert "pope: n 40" in said and "skipped 0" in said
    assert "95 % intervals: 2,000 bootstrap draws of 20 images" in said


def test_what_has_no_interval_says_so_and_counts_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    found = Evaluation(
        benchmark="world",
        n=300,
        metrics={"num_images": 300.0, "chair_s": 0.25, "sentences": 3.0},
        skipped={},
        more={"intervals": {"chair_s": [0.2, 0.3]}, "resampled": {"unit": "images", "num": 300}},
    )
    print_evaluation(found, console=UnattendedConsole(highlight=False, width=120))
    said = capsys.readouterr().out
    assert "world: n 300" in said and "300.0" not in said
    rows = [line.split() for line in said.splitlines()]
    assert ["chair_s", "0.2500", "0.2000", "to", "0.3000"] in rows
    assert ["sentences", "3.0000", "–"] in rows
    assert "–: one of the images that it rests on says nothing of the spread" in said


def test_the_file_has_an_item_a_line_at_its_end_and_is_json(tmp_path: Path) -> None:
    answers, truth = RELEASES["pope"](tmp_path)
    found = {"items": [], **mark_file("pope", answers=answers, truth=truth)}
    write_result(tmp_path / "out.json", value=found)
    text = (tmp_path / "out.json").read_text()
    assert json.loads(text) == found and list(json.loads(text))[-1] == "items"
    assert sum(line.startswith('    {"id"') for line in text.splitlines()) == 40
    write_result(tmp_path / "bare.json", value={"n": 1})
    assert json.loads((tmp_path / "bare.json").read_text()) == {"n": 1}


def test_one_image_has_figures_and_no_interval(tmp_path: Path) -> None:
    answers = write_lines(tmp_path / "said", [{"question_id": at, "text": "Yes"} for at in range(2)])
    labels = [{"question_id": at, "image": "a.jpg", "label": ("yes", "no")[at]} for at in range(2)]
    found = mark_file("pope", answers=answers, truth=write_lines(tmp_path / "truth", labels))
    assert found["metrics"]["accuracy"] == 0.5 and "accuracy" not in found["intervals"]
    json.dumps(found, allow_nan=False)
