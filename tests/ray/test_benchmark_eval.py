"""MMBench asked of the embedded world's tiny policy by `csr-ray eval`, with the pictures out of its TSV."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from csr_ray.__main__ import main
from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.world.build import cached_world

KINDS = ("ball", "car", "tree")
CIRCLE = 1_000_000


@pytest.fixture(scope="module")
def world() -> Path:
    return cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)


def write_mmbench(folder: Path, pictures: list[bytes]) -> Path:
    """A question with three rotations for each picture."""
    folder.mkdir()
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "split"]
    with (folder / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(columns)
        for number, picture in enumerate(pictures):
            for turn in range(3):
                options = [*KINDS[turn:], *KINDS[:turn], ""]
                image = base64.b64encode(picture).decode() if turn == 0 else str(number)
                index = number + turn * CIRCLE
                writer.writerow([index, "What is there?", "", *options, "ACB"[turn], "kinds", image, "dev"])
    return folder


def test_mmbench_is_asked_marked_and_its_bad_picture_set_aside(
    tmp_path: Path, world: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    images = sorted((world / "heldout" / "images").iterdir())[:3]
    data = write_mmbench(tmp_path / "mmbench", [*(path.read_bytes() for path in images), b"no picture"])
    out, output = tmp_path / "answers", tmp_path / "out.json"
    command = ["eval", "--model", str(world / "policy"), "--benchmark", "mmbench", "--data", str(data)]
    assert main([*command, "--out", str(out), "--json", str(output)]) == 0
    assert "mmbench: n 3, accuracy " in capfd.readouterr().out
    found = json.loads(output.read_text())
    assert list(found)[:7] == ["benchmark", "n", "metrics", "skipped", "metrics_are", "notes", "outcomes"]
    assert list(found["intervals"]) == list(found["metrics"])
    assert (found["n"], sorted(found["outcomes"])) == (3, ["0", "1", "2"])
    ((reason, number),) = found["skipped"].items()
    assert "not an image in a format that is read here" in reason and number == 3

    rows = [row for part in sorted(out.glob("part_*.parquet")) for row in pq.read_table(part).to_pylist()]
    assert {int(row["id"]) for row in rows} == {number + turn * CIRCLE for number in range(4) for turn in range(3)}
    assert {Path(row["image"]).parent for row in rows} == {out / "images"}
    assert len({row["image"] for row in rows}) == 4, "a picture is unpacked once, whatever the rotations"

    # The same answers in a file are marked alike.
    answers = tmp_path / "answers.jsonl"
    said = [{"question_id": row["id"], "text": row["answer"].strip()} for row in rows if row["reason"] is None]
    answers.write_text("\n".join(map(json.dumps, said)))
    again = tmp_path / "again.json"
    marking = ["score-answers", "--benchmark", "mmbench", "--answers", str(answers), "--truth", str(data)]
    assert main([*marking, "--json", str(again)]) == 0
    marked = json.loads(again.read_text())
    assert marked["metrics"] == found["metrics"]
    capfd.readouterr()
    assert main(["compare", str(output), str(again)]) == 0, "one asked, the other marked: the same items"
    assert "9 answers of each to the same questions in 3 circular groups" in capfd.readouterr().out
    assert marked["skipped"] == {"no answer to this truth": 3}
