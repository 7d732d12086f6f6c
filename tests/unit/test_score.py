"""Scoring captions without any actor: what is left to do, what is written, and what is said at the end."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from csr_ray.app.console import ConsoleView
from csr_ray.app.score import print_scores, score
from csr_ray.data.prompts import PromptFile
from csr_ray.data.reading import read_job
from csr_ray.data.rows import CAPTION_TEXTS
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.store.parts import PartFolder, Work
from csr_ray.store.scores import CAPTIONS, score_folder


class Scoring:
    """A folder of captions and somebody who scores them: 10 for the first, 11 for the second and so on."""

    def __init__(self, tmp_path: Path, *, num: int = 10) -> None:
        self.path = tmp_path / "c.jsonl"
        rows = [{"id": "same", "image": "a.png", "caption": f"caption {number}"} for number in range(num)]
        self.path.write_text("\n".join(json.dumps(row) for row in [*rows, {"id": "bad", "image": "a.png"}]))
        self.folder = score_folder(tmp_path / "scores")
        self.asked: list[int] = []
        self.faults: dict[int, str] = {}
        self.stop_after: int | None = None
        self.what = {"captions": "c"}

    def run(self) -> tuple[int, int, int]:
        view = ConsoleView(num_rounds=0, console=Console(quiet=True))
        self.captions = PromptFile(str(self.path), images=None, limit=None, texts=CAPTION_TEXTS, may_repeat=True)
        summary = score(self.captions, what=self.what, folder=self.folder, score_jobs=self._jobs, view=view)
        self.summary = summary
        return summary.scored, summary.set_aside, summary.done_before

    def _jobs(self, work: Sequence[Work]) -> Iterator[tuple[int, pa.Table]]:
        for one in reversed(work):  # as they are done, not as they were asked for
            position, (file, job) = one.position, one.job
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(position)
            rows = []
            for at, item in enumerate(read_job(file, job, rules=self.captions.rules), position):
                row = {"id": item.id, "caption": item.text, "source": item.source}
                if at in self.faults:
                    rows.append({**row, "reason": "cannot be read", "fault": self.faults[at]})
                else:
                    rows.append({**row, "score": 10.0 + at, "cut": at == 1})
            yield position, pa.Table.from_pylist(rows, schema=CAPTIONS)


@pytest.fixture
def scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scoring:
    monkeypatch.setattr("csr_ray.data.reading._ROWS_A_CHUNK", 3)
    monkeypatch.setattr("csr_ray.data.rows._ROWS_TOGETHER", 3)
    return Scoring(tmp_path)


def scores(folder: PartFolder) -> list[float | None]:
    parts = sorted(folder.root.glob("part_*.parquet"))
    return [row["score"] for part in parts for row in pq.read_table(part).to_pylist()]


def test_parts_stand_in_the_order_of_the_captions_and_every_row_without_a_score_is_named(scoring: Scoring) -> None:
    scoring.faults = {4: "input"}
    assert scoring.run() == (9, 2, 0)
    assert sorted(scoring.asked) == [0, 3, 6, 9]
    assert scores(scoring.folder) == [10, 11, 12, 13, None, 15, 16, 17, 18, 19]
    lines = [json.loads(line) for line in scoring.folder.quarantine.read_text().splitlines()]
    assert [(line["id"], line["source"], line["reason"]) for line in lines] == [
        ("bad", "c.jsonl:11", "caption is missing"),
        ("same", "c.jsonl:5", "cannot be read"),
    ]
    summary = scoring.summary
    assert (summary.mean, summary.p50, summary.cut) == (pytest.approx(14.555, abs=1e-2), 15, 1)
    said = io.StringIO()
    print_scores(summary, folder=scoring.folder, console=Console(file=said, width=200))
    assert "quarantine.jsonl" in said.getvalue() and "14.56" in said.getvalue()


def test_a_stopped_scoring_goes_on_where_it_was(scoring: Scoring) -> None:
    scoring.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        scoring.run()
    scoring.stop_after, scoring.asked = None, []
    assert scoring.run() == (10, 1, 4)
    assert scoring.asked == [3, 0]
    assert scores(scoring.folder) == [10.0 + number for number in range(10)]
    scoring.asked = []
    assert scoring.run() == (10, 1, 10)
    assert scoring.asked == []


def test_what_the_machine_failed_at_is_tried_again_and_what_is_damaged_done_again(scoring: Scoring) -> None:
    scoring.faults = {4: "machine", 8: "input"}
    assert scoring.run() == (8, 3, 0)
    scoring.faults, scoring.asked = {}, []
    scoring.folder.part(0).write_bytes(b"cut")
    scoring.run()
    assert scoring.asked == [3, 0]
    assert scores(scoring.folder) == [10, 11, 12, 13, 14, 15, 16, 17, None, 19]


def test_a_folder_of_something_else_is_refused(scoring: Scoring) -> None:
    scoring.run()
    scoring.what = {"captions": "c", "scorer": "another"}
    with pytest.raises(ConfigError, match=r"^--out = .*holds the scores of something else \(scorer differ\)"):
        scoring.run()
    scoring.folder.manifest.write_text("[")
    with pytest.raises(ConfigError, match=r"^--out = .*score\.json is not what was written"):
        scoring.run()


def test_captions_of_which_none_can_be_scored_are_no_data(scoring: Scoring) -> None:
    scoring.faults = dict.fromkeys(range(10), "input")
    with pytest.raises(NoDataError, match=r"CAPTIONS: not one can be scored; .*quarantine\.jsonl"):
        scoring.run()
