"""Bulk work by Ray Data: captions are scored by the scorer's own CLIP, and a run's files open as data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fakes import preference_pair, tiny_config

from actors.data.runs import open_run
from actors.score.clip import ClipModel
from csr_ray.__main__ import main
from csr_ray.app.run import world_spec
from csr_ray.config.load import to_plain
from csr_ray.config.schema import World
from csr_ray.errors import ConfigError
from csr_ray.records import Candidate, Cycle, Picture, Prompt, Rollout
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import Outcome, join_example_units, write_example_unit, write_rollouts
from csr_ray.world.build import cached_world

TEXTS = ("There is a red star.", "There is a blue ring.", "I see a moon.")


@pytest.fixture(scope="module")
def world() -> Path:
    return cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)


def write_captions(folder: Path, *, world: Path) -> tuple[Path, list[dict]]:
    """Three captions of each of some pictures; every tenth picture is not one."""
    rows = []
    for number, image in enumerate(sorted((world / "heldout" / "images").iterdir())[:20]):
        if number % 10 == 9:
            image = folder / f"bad_{number}.png"
            image.write_bytes(b"no picture")
        rows += [{"id": f"{number}", "image": str(image), "caption": text} for text in TEXTS]
    rows.append({"id": "empty", "image": "a.png", "caption": ""})
    path = folder / "captions.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path, rows


def test_captions_are_scored_as_the_scorer_does_and_a_second_start_goes_on(
    tmp_path: Path,
    world: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("csr_ray.data.rows._TABLE_ROWS_TOGETHER", 8)
    path, rows = write_captions(tmp_path, world=world)
    out = tmp_path / "scores"
    command = ["score", str(path), "--scorer", str(world / "clip"), "--out", str(out), "--actors", "2"]
    assert main([*command, "--json", str(tmp_path / "figures.json")]) == 0

    parts = sorted(out.glob("part_*.parquet"))
    assert len(parts) > 5
    found = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert [(row["id"], row["caption"]) for row in found] == [(row["id"], row["caption"]) for row in rows[:-1]]
    clip = ClipModel(str(world / "clip"), dtype="float32", device="cpu")
    for row in found:
        if "bad_" in row["image"]:
            assert row["score"] is None
            assert "not an image" in row["reason"]
        else:
            (score,), (cut,) = clip.scores([(Picture(path=row["image"]), row["caption"])])
            assert (row["score"], row["cut"], row["reason"]) == (pytest.approx(score, abs=1e-5), cut, None)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["scored"], figures["set_aside"], figures["done_before"]) == (54, 7, 0)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    assert lines[0] == {
        "id": "empty", "source": "captions.parquet:row 61", "reason": "caption is empty", "fault": "input"
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "score" in said and "60 captions" in said and "54" in said

    written_ns = {part.name: part.stat().st_mtime_ns for part in parts}
    parts[2].unlink()
    assert main([*command, "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert {**again, "seconds": 0, "done_before": 0} == {**figures, "seconds": 0, "done_before": 0}
    assert again["done_before"] == 60 - pq.read_metadata(parts[2]).num_rows
    now_ns = {part.name: part.stat().st_mtime_ns for part in sorted(out.glob("part_*.parquet"))}
    assert {name for name, time_ns in now_ns.items() if written_ns[name] != time_ns} == {parts[2].name}

    assert main([*command, "--limit", "5"]) == 2
    assert "holds the scores of something else (data differ)" in capsys.readouterr().err


def test_what_cannot_be_scored_is_one_line(
    tmp_path: Path, world: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--scorer", str(world / "clip"), "--out", str(tmp_path / "out")]
    path = tmp_path / "c.jsonl"
    assert main(["score", str(path), *out]) == 2
    assert capsys.readouterr().err == f"csr-ray: CAPTIONS = {str(path)!r}: no such file\n"
    path.write_text('{"id": 1, "image": "none.png", "caption": "?"}')
    assert main(["score", str(path), *out]) == 3
    assert "CAPTIONS: not one can be scored" in capsys.readouterr().err
    pq.write_table(pa.table({"id": ["1"], "caption": ["?"]}), tmp_path / "c.parquet")
    assert main(["score", str(tmp_path / "c.parquet"), *out]) == 2
    assert "needs the columns id, image, caption; found 'id', 'caption'" in capsys.readouterr().err
    assert main(["score", str(path), "--scorer", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "--scorer = " in capsys.readouterr().err


def rollout(number: int) -> Rollout:
    """A greedy answer and a sampled one."""
    candidates = tuple(
        Candidate(node=node, text=f"Answer {node}.", token_ids=(7, 8, node), logp=-1.0, reward=float(node))
        for node in range(2)
    )
    prompt = Prompt(id=f"p{number}", image=f"/images/{number}.png", text="Describe.")
    return Rollout(prompt=prompt, candidates=candidates, policy_version=0, seed=0)


def write_run(folder: Path) -> None:
    """Two rounds of two units each, one of which is lost; the pairs of the first round; and a unit without a line."""
    config = tiny_config(folder)
    run = RunFolder(folder)
    journal = Journal(run.journal)
    folder.mkdir()
    run.config.write_text(yaml.safe_dump(to_plain(config)))
    for index in range(2):
        cycle = Cycle(round_index=index, policy_version=index)
        for unit in range(2):
            ids = [f"p{4 * index + 2 * unit + at}" for at in range(2)]
            write_rollouts(run.candidates(cycle, unit=f"u{unit}"), rollouts=[rollout(int(id[1:])) for id in ids])
            journal.commit("rollout", **cycle.key, unit=f"u{unit}", ids=ids, position=0, prompts=2, failed=0)
    write_rollouts(run.candidates(cycle, unit="never"), rollouts=[rollout(99)])
    lost = run.candidates(cycle, unit="u1")
    journal.commit("lost", **cycle.key, names=[lost.relative_to(folder).as_posix()], reason="bad disk")
    lost.write_bytes(b"gone")
    cycle = Cycle(round_index=0)
    example = preference_pair(id="p0", chosen_ids=(7, 8, 1), rejected_ids=(7, 8, 0), image="/images/0.png")
    write_example_unit(folder / "one.parquet", examples=[example], outcome=Outcome(made=1))
    join_example_units(run.pairs(cycle), units=[folder / "one.parquet"])
    journal.commit("examples", **cycle.key, made=1, dropped={})


def test_a_run_opens_as_data_sets_of_what_is_committed(tmp_path: Path, ray_session: None) -> None:
    write_run(tmp_path / "run")
    data = open_run(tmp_path / "run")
    found = data.candidates().take_all()
    assert sorted({(row["id"], row["node"]) for row in found}) == [
        (f"p{n}", node) for n in range(6) for node in (0, 1)
    ]
    first = data.candidates(round_index=0)
    assert first.count() == 8
    assert {row["path"].split("/")[-3] for row in first.take_all()} == {"round_000"}
    (pair,) = data.pairs().take_all()
    assert (pair["id"], list(pair["chosen_ids"])) == ("p0", [7, 8, 1])
    with pytest.raises(ConfigError, match="no pairs of round 2 are committed yet"):
        data.pairs(round_index=1)
    with pytest.raises(ConfigError, match="no such folder"):
        open_run(tmp_path / "nothing")
