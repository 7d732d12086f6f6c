"""The checker calls a sound folder sound, finds each kind of damage, and says what a resume would do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked_runs import CheckedDriver, finished_run
from journals import entries_of, write_journal
from test_loop import cycle, merged_model  # noqa: F401 - a fixture

from csr_ray.__main__ import main
from csr_ray.app.check import check_run
from csr_ray.errors import ConfigError, DamageError, StorageError
from csr_ray.store.digests import Digest, damage_of
from csr_ray.store.journal import Journal


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CheckedDriver:
    return finished_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: CheckedDriver, tmp_path: Path) -> CheckedDriver:
    shutil.copytree(finished.folder.root, tmp_path / "run")
    return finished.at(tmp_path / "run")


def test_a_sound_finished_run(run) -> None:
    report = run.check()
    assert (report.damage, report.notes, report.next) == ([], [], "nothing: the run is finished")
    assert [(phase.prompts, phase.rolled_out, phase.set_aside, phase.open) for phase in report.phases] == [
        (5, 4, 1, 0)
    ] * 2
    assert report.files == 2 * 3 + 2 + 2 * 2 + 1 and report.lines == Journal(run.folder.journal).num_lines


FILES = {
    "unit": lambda run: sorted((run.folder.root / "round_000/candidates").iterdir())[0],
    "pairs": lambda run: run.folder.pairs(cycle(1)),
    "adapter": lambda run: run.folder.adapter(cycle(0)) / "adapter_model.safetensors",
    "model": lambda run: run.folder.model / "model.safetensors",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(run, name: str, how: str) -> None:
    path: Path = FILES[name](run)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(data if how == "flip" else data[:-1])
    report = run.check()
    assert [finding.file for finding in report.damage] == [path.relative_to(run.folder.root).as_posix()]
    words = {"flip": "other bytes", "cut": "and was written with", "remove": "is missing"}
    assert words[how] in report.damage[0].what


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unit", "round 1: say that 1 unit is lost, whose pairs are there"),
        ("pairs", "round 2: make the pairs again from the units"),
    ],
)
def test_what_a_resume_does_about_the_damage_is_said(run, name: str, expected: str) -> None:
    FILES[name](run).unlink()
    assert run.check().next == f"{expected}; nothing: the run is finished"
    run.run()
    report = run.check()
    assert report.sound and report.next == "nothing: the run is finished"


def test_a_damaged_model_is_saved_again(run) -> None:
    FILES["model"](run).unlink()
    assert run.check().next == "save the model again"
    run.run()
    assert run.check().sound and run.starts == [], "nothing was started for that"


def test_pairs_and_a_unit_that_are_gone_before_training_are_both_made_again(tmp_path) -> None:
    run = CheckedDriver(tmp_path / "run", num_prompts=7)
    with pytest.raises(KeyboardInterrupt):
        run.run(fail_at=0)
    unit = next(entry for entry in entries_of(run.folder.journal) if entry["kind"] == "rollout")
    run.folder.candidates(cycle(0), unit=unit["unit"]).unlink()
    run.folder.pairs(cycle(0)).unlink()
    says = f"round 1: {len(unit['ids'])} prompts to roll out, then build the examples again, then train, then publish"
    assert run.check().next == f"{says}, then go on"
    run.run()
    assert sorted(run.generators.grown) == sorted((0, one) for one in unit["ids"]) and run.check().sound


def test_what_keeps_a_resume_from_starting_is_all_that_is_said_to_be_next(run) -> None:
    FILES["adapter"](run).unlink()
    assert run.check().next.startswith("nothing, until round_000/adapter/adapter_model.safetensors is put back")
    with pytest.raises(DamageError):
        run.run()
    run.folder.config.write_text("run: [1")
    assert run.check().next == "nothing, until config.yaml is put back from a copy"
    run.folder.journal.write_bytes(b"x" + run.folder.journal.read_bytes())
    assert run.check().next == "nothing, until journal.jsonl is put back from a copy"


def test_the_last_adapter_is_trained_again(run) -> None:
    (run.folder.adapter(cycle(1)) / "adapter_model.safetensors").unlink()
    assert run.check().next == "round 2: train again, then publish again, then go on"
    run.run()
    assert run.check().sound and [order.cycle.round_index for order in run.trainer.orders] == [1]


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_the_place_of_a_file_is_named_and_not_read(run, name: str) -> None:
    path: Path = FILES[name](run)
    path.unlink()
    os.mkfifo(path)
    (finding,) = run.check().damage
    assert finding.what == "is no file"
    assert damage_of(path, expected=Digest(0, "")) == "is no file"


def test_what_the_run_knows_to_be_lost_is_still_said(run) -> None:
    FILES["unit"](run).unlink()
    run.run()
    report = run.check()
    assert report.sound, "what is known and cannot be mended must not make every later check fail"
    (note,) = report.notes
    assert "is missing, and the journal says that it is lost" in note
    assert sum(phase.lost_files for phase in report.phases) == 1


def changed(run: CheckedDriver, change: Callable[[list[dict]], object]) -> list[str]:
    """What the checker says of a journal whose checksums are right and whose lines are not."""
    entries = entries_of(run.folder.journal)
    change(entries)
    write_journal(run.folder.journal, entries=entries)
    return [finding.what for finding in run.check().damage]


def units(entries: list[dict]) -> list[dict]:
    return [entry for entry in entries if entry["kind"] == "rollout" and entry["round"] == 0]


def test_a_lost_prompt_is_found(run) -> None:
    found = changed(run, lambda entries: entries.remove(next(e for e in units(entries) if e["ids"] == ["p4"])))
    assert any("closed with 5 prompts, its units have 4" in what for what in found)
    assert any("1 prompts of the prompt file are in no unit of it, p4 first" in what for what in found)
    assert any("examples of 1 prompts that no unit has" in what for what in found)


def test_a_pair_that_is_missing_is_found_although_the_digest_is_right(run) -> None:
    path = run.folder.pairs(cycle(1))
    pq.write_table(pq.read_table(path).slice(1), path)

    def reseal(entries: list[dict]) -> None:
        line = next(entry for entry in entries if entry["kind"] == "examples" and entry["round"] == 1)
        line["files"] = {name: Digest.of_file(run.folder.root / name).to_plain() for name in line["files"]}

    assert any("examples, its line says" in what for what in changed(run, reseal))


def test_a_doubled_prompt_is_found(run) -> None:
    def double(entries: list[dict]) -> None:
        first, second = units(entries)[:2]
        second["ids"].append(first["ids"][0])
        second["prompts"] += 1

    assert any("is in unit" in what for what in changed(run, double))


def test_a_rejection_that_is_a_rollout_too_is_found(run) -> None:
    def reject(entries: list[dict]) -> None:
        entry = next(e for e in units(entries) if not e["rejected"])
        entry["rejected"] = [{"id": entry["ids"][0], "source": "s", "reason": "r", "fault": "input"}]
        entry["prompts"] -= 1

    found = changed(run, reject)
    assert any("other prompts than its line says" in what for what in found)
    assert any("no line for prompt" in what for what in found)


def test_a_unit_of_another_policy_version_is_found(run) -> None:
    path = FILES["unit"](run)
    table = pq.read_table(path)
    column = table.schema.get_field_index("policy_version")
    table = table.set_column(column, "policy_version", pq.read_table(path).column("node"))
    pq.write_table(table, path)
    digest = Digest.of_file(path).to_plain()
    name = path.relative_to(run.folder.root).as_posix()

    def reseal(entries: list[dict]) -> None:
        next(e for e in units(entries) if name in e["files"])["files"][name] = digest

    (what,) = changed(run, reseal)
    assert "its phase starts from version 0" in what


@pytest.mark.parametrize("how", ["flip", "cut", "remove", "double", "folder"])
def test_a_damaged_quarantine_is_found(run, how: str) -> None:
    path = run.folder.quarantine
    data = path.read_bytes()
    {
        "flip": lambda: path.write_bytes(data.replace(b"poison", b"poisoM")),
        "cut": lambda: path.write_bytes(data[:-5]),
        "remove": path.unlink,
        "double": lambda: path.write_bytes(data + data),
        "folder": lambda: (path.unlink(), path.mkdir()),
    }[how]()
    report = run.check()
    assert {finding.file for finding in report.damage} == {"quarantine.jsonl"}
    assert ("moved away" in report.next) == (how == "folder")


def test_a_torn_line_of_the_quarantine_is_no_damage_while_no_line_speaks_of_it(run) -> None:
    with run.folder.quarantine.open("ab") as file:
        file.write(b'{"id": "p3", "sou')
    report = run.check()
    assert report.sound and "quarantine.jsonl is torn" in report.notes[0]


def test_a_damaged_journal_is_found_and_a_torn_one_is_none(run) -> None:
    data = run.folder.journal.read_bytes()
    flipped = bytearray(data)
    flipped[data.index(b"\n") + 20] ^= 2
    run.folder.journal.write_bytes(flipped)
    assert [finding.what.split(" is ")[0] for finding in run.check().damage] == ["line 2"]
    run.folder.journal.write_bytes(data[:-1] + b"\x0b")
    assert len(run.check().damage) == 1
    run.folder.journal.write_bytes(data[:-9])
    report = run.check()
    assert report.sound and report.next == "save the model" and "torn" in report.notes[0]
    run.folder.journal.write_bytes(data[:-1])
    assert run.check().next == "nothing: the run is finished"


def test_unfinished_files_are_taken_for_nothing(run) -> None:
    shutil.copy(FILES["unit"](run), run.folder.root / "round_000/candidates/.unit_ff.parquet.abcd1234")
    shutil.copy(FILES["unit"](run), run.folder.root / "round_000/candidates/unit_ff.parquet")
    report = run.check()
    assert report.sound and len(report.notes) == 2


STOPS = [
    ({"stop_after": 0}, "round 1: 5 prompts to roll out, then build the examples, then train, then publish"),
    ({"stop_after": 4}, "round 1: 2 prompts to roll out, then build the examples, then train, then publish"),
    ({"fail_at": 0}, "round 1: train, then publish"),
    ({"die_at_publish": 0}, "round 1: publish"),
    ({"stop_after": 6}, "round 2: 4 prompts to roll out, then build the examples, then train, then publish"),
]


@pytest.mark.parametrize(("stop", "expected"), STOPS)
def test_what_a_resume_would_do(tmp_path, stop: dict, expected: str) -> None:
    driver = CheckedDriver(tmp_path / "run", num_prompts=5, rounds=2)
    driver.state().journal.commit("model", name="m", revision=None)
    with pytest.raises(KeyboardInterrupt):
        driver.run(**stop)
    report = driver.check()
    assert report.sound and report.next == f"{expected}, then go on"
    driver.run()
    assert driver.check().next == "nothing: the run is finished" and driver.check().sound


def test_with_prompts_in_turn_each_round_is_held_to_its_own(tmp_path) -> None:
    driver = CheckedDriver(tmp_path / "run", num_prompts=5, rounds=3, per_round=2)
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=5)
    report = driver.check()
    assert report.sound and [phase.prompts for phase in report.phases] == [2, 2]
    assert report.next.startswith("round 3: 2 prompts to roll out")
    driver.run()
    assert driver.check().sound


def test_a_prompt_file_that_changed_is_news_and_no_damage(run, tmp_path) -> None:
    text = run.source.read_text()
    try:
        run.source.write_text(text.replace('"p0"', '"new"'))
        report = run.check()
    finally:
        run.source.write_text(text)
    assert report.sound and {note.split(": ")[1] for note in report.notes} == {
        "1 prompt is in the prompt file no more",
        "1 prompt is new in the prompt file",
    }


@pytest.fixture
def web_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckedDriver:
    """A run whose pictures are web pages; whoever asks for one fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("csr_ray.data.web.fetch", refuse)
    driver = CheckedDriver(tmp_path / "run", num_prompts=5, urls=True)
    rows = [
        {"id": one.id, "image": f"https://example.com/{one.id}.png", "prompt": one.text} for one in driver.prompts
    ]
    driver.source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return driver


def test_prompts_whose_pictures_are_web_pages_are_known_without_asking_the_web(web_run: CheckedDriver) -> None:
    web_run.run()
    report = web_run.check()
    assert (report.damage, report.notes, report.next) == ([], [], "nothing: the run is finished")
    entries = entries_of(web_run.folder.journal)
    first = next(number for number, entry in enumerate(entries) if entry["kind"] == "rollout")
    write_journal(web_run.folder.journal, entries=entries[: first + 1])
    report = web_run.check()
    (phase,) = report.phases
    assert (phase.prompts, phase.open) == (len(entries[first]["ids"]), 5 - len(entries[first]["ids"]))
    assert report.next.startswith(f"round 1: {phase.open} prompts to roll out")


def test_a_prompt_file_on_the_web_is_not_fetched(web_run: CheckedDriver) -> None:
    web_run.run()
    web_run.folder.config.write_text(
        web_run.folder.config.read_text().replace(str(web_run.source), "https://example.com/prompts.jsonl")
    )
    entries = entries_of(web_run.folder.journal)
    first = next(number for number, entry in enumerate(entries) if entry["kind"] == "rollout")
    write_journal(web_run.folder.journal, entries=entries[: first + 1])
    report = web_run.check()
    assert [phase.open for phase in report.phases] == [None]
    assert report.next.startswith("round 1: the prompts to roll out")


@pytest.mark.parametrize("ids", [[None, "zz"], [["p0"], ["p1"]], [b"\xff", b"p0"], [1, 2]])
def test_pairs_of_another_kind_are_named(run, ids: list[object]) -> None:
    pq.write_table(pa.table({"id": ids}), run.folder.pairs(cycle(1)))
    report = run.check()
    assert {finding.file for finding in report.damage} == {"round_001/pairs.parquet"}
    assert any("2 prompts that no unit has" in finding.what for finding in report.damage)


@pytest.mark.parametrize("name", ["unit", "pairs"])
@pytest.mark.parametrize("is_trained", [True, False])
def test_a_folder_in_the_place_of_a_file_is_moved_away_first_if_the_file_has_to_be_written(
    tmp_path: Path, name: str, is_trained: bool
) -> None:
    run = CheckedDriver(tmp_path / "run")
    if is_trained:
        run.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            run.run(fail_at=0)
    if name == "unit":
        path = FILES["unit"](run)
        if not is_trained:  # its rollouts are wanted again
            pairs = run.folder.pairs(cycle(0))
            pairs.unlink()
    else:
        path = run.folder.pairs(cycle(0))
    path.unlink()
    path.mkdir()
    says = run.check().next
    if name == "unit" and is_trained:
        assert says.startswith("round 1: say that 1 unit is lost")
        run.run()
        assert run.check().sound
        return
    assert says == f"nothing, until {path.relative_to(run.folder.root)} is moved away"
    with pytest.raises(StorageError, match="move away what stands in its place"):
        run.run()
    path.rmdir()
    run.run()
    assert run.check().sound


def test_a_folder_in_the_place_of_a_unit_that_is_not_decided_on_is_moved_away_first(tmp_path: Path) -> None:
    run = CheckedDriver(tmp_path / "run", num_prompts=5)
    with pytest.raises(KeyboardInterrupt):
        run.run(stop_after=4)
    path = FILES["unit"](run)
    path.unlink()
    path.mkdir()
    assert run.check().next == f"nothing, until {path.relative_to(run.folder.root)} is moved away"
    with pytest.raises(StorageError, match="move away what stands in its place"):
        run.run()


def test_a_file_in_the_place_of_the_folder_of_a_file_that_has_to_be_written_is_moved_away_first(run) -> None:
    folder = run.folder.pairs(cycle(1)).parent
    shutil.rmtree(folder)
    folder.write_text("x")
    assert run.check().next == "nothing, until round_001 is moved away"
    with pytest.raises(StorageError, match=r"round_001.*move away what stands in its place"):
        run.run()
    folder.unlink()
    run.run()
    assert run.check().sound


def test_a_config_or_a_quarantine_of_endless_brackets_is_damage(run) -> None:
    run.folder.quarantine.write_text("[" * 100_000 + "\n")
    report = run.check()
    assert {finding.file for finding in report.damage} == {"quarantine.jsonl"}
    assert any("line 1 cannot be read" in finding.what for finding in report.damage)
    run.folder.config.write_text("[" * 3000)
    assert "config.yaml" in {finding.file for finding in run.check().damage}


def test_a_pipe_in_the_place_of_the_quarantine_is_written_over(run) -> None:
    run.folder.quarantine.unlink()
    os.mkfifo(run.folder.quarantine)
    report = run.check()
    assert report.damage[0].what == "is no file; the next start writes it again"
    assert report.next == "write quarantine.jsonl again; nothing: the run is finished"
    run.run()
    assert run.check().sound


def test_the_command(run, tmp_path, capsys) -> None:
    before = {path: path.read_bytes() for path in run.folder.root.rglob("*") if path.is_file()}
    assert main(["check", str(run.folder.root), "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "sound" in said and "next: nothing: the run is finished" in said
    assert json.loads((tmp_path / "out.json").read_text())["sound"] is True
    path = FILES["unit"](run)
    path.unlink()
    del before[path]
    assert main(["check", str(run.folder.root), "--json", str(tmp_path / "out.json")]) == 1
    assert "damaged" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["damage"][0]["what"] == "is missing"
    assert {path: path.read_bytes() for path in run.folder.root.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_run_is_said_to_be_one(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no journal\.jsonl"):
        check_run(tmp_path)


def test_the_checker_shares_no_code_with_what_wrote_the_run() -> None:
    code = "import sys, csr_ray.app.check; print([m for m in sys.modules if m.startswith('csr_ray.st')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"csr_ray.store.journal", "csr_ray.store.units", "csr_ray.store.lines", "csr_ray.stages.turn"} & set(
        eval(done.stdout)
    )
