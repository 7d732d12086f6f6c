"""Whatever the journal names is verified before anything starts: damaged work is done again, or said to be lost."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakes import FakeGenerators
from journals import entries_of
from rich.console import Console
from test_loop import PROMPTS, Driver, cycle, merged_model, pair_ids  # noqa: F401 - a fixture

from csr_ray.app.check import check_run
from csr_ray.app.console import ConsoleView
from csr_ray.config.load import to_plain
from csr_ray.errors import DamageError
from csr_ray.records import Prompt
from csr_ray.stages.recover import finish_again, is_sound, recover
from csr_ray.store.digests import Digest, damage_of
from csr_ray.store.journal import Journal


def flip(path: Path, *, position: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = next(other for other in sorted(path.parent.iterdir()) if other.name != path.name)
    shutil.copy(other, path)


BREAKS = (flip, cut, remove, replace)


def killed(directory: Path, *, stop_after: int, **sections: dict) -> Driver:
    driver = Driver(directory, **sections)
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=stop_after)
    return driver


def units_of(driver: Driver, *, index: int = 0) -> list[Path]:
    return sorted((driver.folder.cycle(cycle(index)) / "candidates").iterdir())


def content(driver: Driver) -> list[list[dict]]:
    return [pq.read_table(driver.folder.pairs(cycle(index))).to_pylist() for index in (0, 1)]


@pytest.fixture
def whole(tmp_path: Path) -> Driver:
    driver = Driver(tmp_path / "whole")
    driver.run()
    return driver


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("damage", BREAKS)
def test_a_damaged_unit_of_an_open_phase_is_rolled_out_again(
    tmp_path, whole, damage: Callable[[Path], None], streaming: bool
) -> None:
    driver = killed(tmp_path / "run", stop_after=4, train={"streaming": streaming})
    lines = [entry for entry in entries_of(driver.folder.journal) if entry["kind"] == "rollout"]
    first = next(entry for entry in lines if len(entry["ids"]) == 2)
    damage(driver.folder.candidates(cycle(0), unit=first["unit"]))
    driver.run()
    assert "1 unit rolled out again (round_000/candidates/unit_" in driver.said.getvalue()
    assert sorted(prompt_id for index, prompt_id in driver.generators.grown if index == 0) == sorted(
        {*first["ids"], *({p.id for p in PROMPTS} - {i for entry in lines for i in entry["ids"]})}
    )
    assert content(driver) == content(whole)
    summary = json.loads(driver.folder.summary.read_text())
    assert summary["rounds"][0]["rollout"]["prompts"] == 5, "the voided unit is not counted"
    driver.run()
    assert driver.said.getvalue() == "", "what was mended is not said again"


def test_a_folder_that_is_gone_with_all_of_its_units_is_said_in_one_line(tmp_path, whole) -> None:
    driver = killed(tmp_path / "run", stop_after=5)  # every unit is committed, the examples are not decided
    driver.folder.journal.write_bytes(b"".join(driver.folder.journal.read_bytes().splitlines(keepends=True)[:6]))
    shutil.rmtree(driver.folder.cycle(cycle(0)) / "candidates")
    driver.run()
    assert "3 units rolled out again" in driver.said.getvalue()
    assert len(driver.generators.grown) == 10 and content(driver) == content(whole)
    assert [entry["kind"] for entry in entries_of(driver.folder.journal)][6:9] == ["again"] * 3


@pytest.mark.parametrize("damage", BREAKS)
def test_a_damaged_unit_of_a_decided_phase_is_lost_and_that_is_said_once(
    tmp_path, damage: Callable[[Path], None]
) -> None:
    driver = killed(tmp_path, stop_after=7)
    before = driver.folder.pairs(cycle(0)).read_bytes()
    damage(units_of(driver)[0])
    driver.run()
    assert "round 1 has lost 1 file (round_000/candidates/unit_" in driver.said.getvalue()
    assert "nothing is done again" in driver.said.getvalue()
    assert [index for index, _ in driver.generators.grown] == [1] * len(driver.generators.grown)
    assert driver.folder.pairs(cycle(0)).read_bytes() == before
    driver.run()
    assert "lost" not in driver.said.getvalue() and len(driver.starts) == 2
    assert [entry["kind"] for entry in entries_of(driver.folder.journal)].count("lost") == 1


@pytest.mark.parametrize("damage", [flip, cut, remove])
@pytest.mark.parametrize("stop", ["before training", "in the next round", "finished"])
def test_damaged_pairs_are_made_again_from_the_units(
    tmp_path, whole, damage: Callable[[Path], None], stop: str
) -> None:
    driver = Driver(tmp_path / "run")
    if stop == "finished":
        driver.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            driver.run(**{"fail_at": 0} if stop == "before training" else {"stop_after": 7})
    before = driver.folder.pairs(cycle(0)).read_bytes()
    damage(driver.folder.pairs(cycle(0)))
    driver.run()
    assert "pairs.parquet" in driver.said.getvalue() and "bit for bit as it was" in driver.said.getvalue()
    assert driver.folder.pairs(cycle(0)).read_bytes() == before
    assert content(driver) == content(whole)
    assert 0 not in {index for index, _ in driver.generators.grown}
    assert not (driver.folder.example_units(cycle(0))).exists()


def test_pairs_that_come_out_otherwise_get_a_line_of_their_own(tmp_path, monkeypatch) -> None:
    """As with another release of the library that writes them."""
    driver = Driver(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        driver.run(fail_at=0)
    remove(driver.folder.pairs(cycle(0)))
    monkeypatch.setattr("csr_ray.store.tables._ROWS_A_GROUP", 2)
    driver.run()
    assert "but not with the same bytes as before" in driver.said.getvalue()
    driver.run()
    assert driver.said.getvalue() == ""


def test_pairs_and_units_that_are_both_damaged_are_rolled_out_again_while_nothing_is_trained(tmp_path, whole) -> None:
    driver = Driver(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        driver.run(fail_at=0)
    remove(driver.folder.pairs(cycle(0)))
    flip(units_of(driver)[0])
    driver.run()
    assert 1 <= len([index for index, _ in driver.generators.grown if index == 0]) <= 2
    assert content(driver) == content(whole)
    driver.run()
    assert driver.said.getvalue() == ""


def test_pairs_and_units_that_are_both_damaged_after_training_are_lost(tmp_path) -> None:
    driver = killed(tmp_path, stop_after=7)
    remove(driver.folder.pairs(cycle(0)))
    flip(units_of(driver)[0])
    driver.run()
    assert "what was trained on them stays" in driver.said.getvalue()
    assert {index for index, _ in driver.generators.grown} == {1}
    driver.run()
    assert driver.said.getvalue() == ""


@pytest.mark.parametrize("damage", BREAKS)
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("stop", [{"die_at_publish": 1}, {}])
def test_a_damaged_adapter_on_which_nothing_stands_is_trained_again(
    tmp_path, whole, damage: Callable[[Path], None], file: str, stop: dict
) -> None:
    driver = Driver(tmp_path / "run")
    if stop:
        with pytest.raises(KeyboardInterrupt):
            driver.run(**stop)
    else:
        driver.run()
    adapter = driver.folder.adapter(cycle(1))
    checkpoint = driver.folder.checkpoints(cycle(1)) / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    damage(adapter / file)
    summary = driver.run()
    assert f"adapter/{file} " in driver.said.getvalue() and "round 2 is trained again" in driver.said.getvalue()
    assert driver.starts[-1] == [str(driver.folder.adapter(cycle(0)))] and driver.trainer.trained == [1]
    assert driver.generators.published == [2] and driver.generators.grown == []
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    assert not checkpoint.exists()
    assert [entry["policy_version"] for entry in summary["rounds"]] == [1, 2] and summary["finished"]
    assert content(driver) == content(whole)
    driver.run()
    assert driver.said.getvalue() == ""


@pytest.mark.parametrize("damage", BREAKS)
@pytest.mark.parametrize("finished", [False, True])
def test_a_damaged_adapter_on_which_phases_stand_stops_the_run_until_it_is_told(
    tmp_path, whole, damage: Callable[[Path], None], finished: bool
) -> None:
    driver = Driver(tmp_path / "run")
    if finished:
        driver.run()
    else:
        driver = killed(tmp_path / "run", stop_after=7)
    path = driver.folder.adapter(cycle(0)) / "adapter_model.safetensors"
    sound = path.read_bytes()
    damage(path)
    journal = driver.folder.journal.read_bytes()
    num_starts = len(driver.starts)
    with pytest.raises(DamageError) as caught:
        driver.run()
    message = str(caught.value)
    assert message.startswith(f"{path} ") and "\n" not in message
    assert "policy version 1 is made of it, which round 2 of this run started from" in message
    assert "from a copy" in message and "--redo" in message
    assert driver.folder.journal.read_bytes() == journal and len(driver.starts) == num_starts
    # Put back from a copy the run goes on; with --redo it does without.
    path.write_bytes(sound)
    shutil.copytree(driver.folder.root, tmp_path / "copy")
    driver.run()
    assert 0 not in driver.trainer.trained
    driver = Driver(tmp_path / "copy")
    damage(driver.folder.adapter(cycle(0)) / "adapter_model.safetensors")
    driver.run(may_redo=True)
    assert driver.trainer.trained == [0, 1] and driver.generators.published == [1, 2]
    assert [index for index, _ in driver.generators.grown] == [1] * 5
    assert content(driver) == content(whole)
    driver.run()
    assert driver.said.getvalue() == "" and len(driver.starts) == 1


@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_a_damaged_model_is_saved_again_and_nothing_is_started(tmp_path, damage: Callable[[Path], None]) -> None:
    driver = Driver(tmp_path)
    first = driver.run()
    path = driver.folder.model / "model.safetensors"
    before = path.read_bytes()
    damage(path)
    assert driver.run() == first
    assert path.read_bytes() == before and len(driver.starts) == 1
    assert "the model is saved again from the adapters" in driver.said.getvalue()
    driver.run()
    assert driver.said.getvalue() == ""


def test_a_model_that_more_rounds_will_replace_is_not_saved_twice(tmp_path) -> None:
    driver = Driver(tmp_path, run={"rounds": 1})
    driver.run()
    driver.config = Driver(tmp_path).config
    with pytest.raises(KeyboardInterrupt):
        driver.run(die_at_publish=0)
    remove(driver.folder.model / "model.safetensors")
    driver.run()
    assert driver.said.getvalue().count("saved again") == 0


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("damage", [*BREAKS, *(f"byte {share}" for share in (0.1, 0.3, 0.5, 0.7, 0.9))])
def test_a_damaged_file_of_a_units_examples_is_made_again(tmp_path, whole, damage, streaming: bool) -> None:
    """It has no line, but says itself which rollouts it follows from, and its pages have checksums."""
    driver = Driver(tmp_path / "run", train={"streaming": streaming})
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=4)
    (journal := driver.state().journal).units(round=0, phase="main")
    built = sorted(driver.folder.example_units(cycle(0)).iterdir())
    assert len(built) == len(journal.units(round=0, phase="main").names) == 2
    if isinstance(damage, str):
        flip(built[0], position=int(built[0].stat().st_size * float(damage.split()[1])))
    else:
        damage(built[0])
    driver.run()
    assert content(driver) == content(whole)


@pytest.mark.parametrize("fault", ["policy", "machine"])
def test_a_rejection_that_is_not_the_inputs_fault_is_tried_again_while_that_can_matter(
    tmp_path, monkeypatch, fault: str
) -> None:
    refused = Prompt.refused
    monkeypatch.setattr(Prompt, "refused", lambda self, reason: refused(self, reason, fault=fault))
    driver = Driver(tmp_path, run={"rounds": 1})
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=4, fail_ids=frozenset({"p3", "p4"}))
    assert {row["id"] for row in quarantined(driver)} == {"p3", "p4"}
    driver.run(fail_ids=frozenset({"p4"}))
    assert "2 prompts that engine, scorer or policy failed on: tried again" in driver.said.getvalue()
    assert sorted(prompt_id for _, prompt_id in driver.generators.grown) == ["p0", "p1", "p3", "p4"]
    assert [row["id"] for row in quarantined(driver)] == ["p4"]
    assert pair_ids(driver) == ["p0", "p1", "p2", "p3"]
    # The round is over: what is left aside stays so, with its line.
    driver.config = Driver(tmp_path, run={"rounds": 2}).config
    driver.run()
    assert {index for index, _ in driver.generators.grown} == {1}
    assert [row["id"] for row in quarantined(driver)] == ["p4"]


def test_an_input_that_cannot_be_used_is_not_tried_again(tmp_path) -> None:
    driver = Driver(tmp_path, run={"rounds": 1})
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=4, fail_ids=frozenset({"p3", "p4"}))
    driver.run()
    assert sorted(prompt_id for _, prompt_id in driver.generators.grown) == ["p0", "p1"]
    assert {row["id"] for row in quarantined(driver)} == {"p3", "p4"}


def quarantined(driver: Driver) -> list[dict]:
    path = driver.folder.quarantine
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_a_damaged_quarantine_is_made_again_from_the_journal(tmp_path, damage: Callable[[Path], None]) -> None:
    driver = Driver(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=4, fail_ids=frozenset({"p3", "p4"}))
    before = quarantined(driver)
    assert {tuple(row) for row in before} == {("id", "source", "reason", "fault")} and len(before) == 2
    damage(driver.folder.quarantine)
    driver.run()
    assert quarantined(driver) == before


def test_what_interrupted_writes_have_left_is_swept_up(tmp_path) -> None:
    driver = killed(tmp_path, stop_after=4)
    rests = [
        tmp_path / ".model.abcd1234",
        tmp_path / "round_000/.adapter.old.abcd12_4",
        tmp_path / "round_000/.pairs.parquet.abcd1234",
        tmp_path / "round_000/candidates/.unit_00ff.parquet.abcd1234",
    ]
    for rest in rests:
        rest.mkdir() if "parquet" not in rest.name else rest.write_bytes(b"half")
    (tmp_path / ".mine").write_text("not ours")
    driver.run()
    assert not [rest for rest in rests if rest.exists()] and (tmp_path / ".mine").exists()


@pytest.mark.parametrize("change", ["added", "removed", "reordered", "all of it"])
def test_a_resume_is_by_name_whatever_became_of_the_prompt_file(tmp_path, change: str) -> None:
    driver = killed(tmp_path, stop_after=3)
    more = [Prompt(id=f"new{number}", image="n.png", text="Describe.") for number in range(2)]
    driver.prompts = {
        "added": [more[0], *PROMPTS, more[1]],
        "removed": [PROMPTS[0], PROMPTS[3]],
        "reordered": PROMPTS[::-1],
        "all of it": more,
    }[change]
    lines = [entry for entry in entries_of(driver.folder.journal) if entry["kind"] == "rollout"]
    committed = {prompt_id for entry in lines for prompt_id in entry["ids"]}
    assert committed == {"p2", "p3", "p4"}
    driver.run()
    grown = [prompt_id for index, prompt_id in driver.generators.grown if index == 0]
    assert sorted(grown) == sorted({prompt.id for prompt in driver.prompts} - committed)
    assert sorted(pair_ids(driver)) == sorted({prompt.id for prompt in driver.prompts} | committed)
    assert sorted(pair_ids(driver, index=1)) == sorted(prompt.id for prompt in driver.prompts)


def test_a_digest_finds_every_cut_and_every_flipped_bit_of_a_unit(tmp_path, whole) -> None:
    path = units_of(whole)[0]
    data = path.read_bytes()
    expected = Digest.of_file(path)
    assert expected == Digest.of_bytes(data) and damage_of(path, expected=expected) is None
    units = Journal(whole.folder.journal).units(round=0, phase="main")
    assert expected in [digest for _, digest in units.digests()], "the line says the same"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert "bytes, and was written with" in str(damage_of(path, expected=expected))
    damaged = bytearray(data)
    for position in range(0, len(data), 3):
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert damage_of(path, expected=expected) == "has not the bytes that were written (its digest differs)"
        damaged[position] ^= 1 << position % 8


@pytest.mark.parametrize("damage", BREAKS)
@pytest.mark.parametrize("what", ["unit", "pairs", "adapter", "model"])
def test_a_finished_run_is_only_shown_while_every_file_is_sound(
    tmp_path, damage: Callable[[Path], None], what: str
) -> None:
    driver = Driver(tmp_path)
    driver.run()
    assert is_sound(driver.state())
    if what == "unit":
        path = units_of(driver)[0]
    elif what == "pairs":
        path = driver.folder.pairs(cycle(1))
    elif what == "adapter":
        path = next(iter(sorted(driver.folder.adapter(cycle(0)).iterdir())))
    else:
        path = next(iter(sorted(driver.folder.model.iterdir())))
    if damage is replace:
        flip(path, position=0)
    else:
        damage(path)
    assert not is_sound(driver.state())
    if what == "unit":
        driver.run()
        assert is_sound(driver.state()), "what is known to be lost is no news"


@pytest.mark.parametrize("how", ["remove", "cut", "flip", "double", "tail"])
def test_the_quarantine_of_a_finished_run_is_mended(tmp_path, how: str) -> None:
    driver = Driver(tmp_path)
    driver.run(fail_ids=frozenset({"p1"}))
    path = driver.folder.quarantine
    data = path.read_bytes()
    assert data and is_sound(driver.state())
    {
        "remove": path.unlink,
        "cut": lambda: path.write_bytes(data[:-3]),
        "flip": lambda: path.write_bytes(data.replace(b"p1", b"p0")),
        "double": lambda: path.write_bytes(data + data),
        "tail": lambda: path.write_bytes(data + b'{"id": "p2", "so'),
    }[how]()
    assert not is_sound(driver.state())
    state, said = driver.state(), io.StringIO()
    view = ConsoleView(num_rounds=2, console=Console(file=said, width=1000))
    finish_again(state, rejections=lambda: (), view=view)
    assert path.read_bytes() == data and "quarantine.jsonl was damaged" in said.getvalue()
    assert is_sound(driver.state()) and json.loads(driver.folder.summary.read_text())["finished"]


def test_fewer_rounds_than_were_trained_make_the_model_of_those_that_are_asked_for(tmp_path) -> None:
    """`merged_model` writes how many adapters it is made of."""
    with pytest.raises(KeyboardInterrupt):
        Driver(tmp_path, run={"rounds": 2}).run(die_at_publish=1)
    fewer = Driver(tmp_path, run={"rounds": 1})
    fewer.run()
    model = fewer.folder.model / "model.safetensors"
    assert set(model.read_bytes()) == {1} and fewer.state().is_finished
    flip(model, position=0)
    assert not is_sound(fewer.state())
    fewer.run()
    assert set(model.read_bytes()) == {1} and is_sound(fewer.state())
    both = Driver(tmp_path, run={"rounds": 2})
    both.run()
    assert set(model.read_bytes()) == {2} and both.trainer.trained == []


def test_answers_of_an_evaluation_that_are_damaged_are_said_to_be_lost_once(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.run()
    assert [driver.folder.marked_answers(version).is_file() for version in (0, 1, 2)] == [True] * 3
    driver.folder.config.write_text(json.dumps(to_plain(driver.state().config)))
    assert check_run(tmp_path).sound
    flip(driver.folder.marked_answers(1), position=60)
    assert not is_sound(driver.state())
    assert [finding.file for finding in check_run(tmp_path).damage] == ["eval/version_001.parquet"]
    assert "say that the answers of 1 evaluation is lost, and keep the figures" in check_run(tmp_path).next
    for says in ("the answers of policy version 1 are lost (eval/version_001.parquet ", ""):
        said = io.StringIO()
        recover(driver.state(), view=ConsoleView(num_rounds=2, console=Console(file=said, width=200)))
        assert says in said.getvalue() and bool(says) == ("lost" in said.getvalue())
    assert is_sound(driver.state()) and check_run(tmp_path).sound
    assert driver.state().journal.find("eval", version=1)["metrics"]


def test_answers_of_a_version_that_is_evaluated_again_are_not_taken_for_lost(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.run()
    driver.folder.marked_answers(2).unlink()
    recover(driver.state(), view=ConsoleView(num_rounds=2))
    flip(driver.folder.adapter(cycle(1)) / "adapter_model.safetensors", position=0)
    driver.run()
    assert driver.folder.marked_answers(2).is_file() and is_sound(driver.state())
    assert [finding.file for finding in check_run(tmp_path).damage] == ["config.yaml"], "these runs have none"


def test_answers_of_an_adapter_that_is_trained_again_are_not_kept(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.run()
    answers = [driver.folder.answers(version) for version in (1, 2)]
    answers[0].parent.mkdir(exist_ok=True)
    for path in answers:
        path.write_text("answers")
    flip(driver.folder.adapter(cycle(1)) / "adapter_model.safetensors", position=0)
    recover(driver.state(), view=ConsoleView(num_rounds=2))
    assert [path.exists() for path in answers] == [True, False]


def test_checkpoints_of_a_training_that_is_voided_go_with_it(tmp_path) -> None:
    driver = killed(tmp_path, stop_after=7)
    checkpoints = [driver.folder.checkpoints(cycle(index)) for index in (0, 1)]
    for folder in checkpoints:
        folder.mkdir(parents=True)
    flip(driver.folder.adapter(cycle(0)) / "adapter_model.safetensors", position=0)
    recover(driver.state(), view=ConsoleView(num_rounds=2), may_redo=True)
    assert [folder.exists() for folder in checkpoints] == [False, False]


def test_pairs_that_are_damaged_behind_a_lost_unit_are_made_of_new_rollouts(tmp_path, whole) -> None:
    driver = Driver(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        driver.run(fail_at=0)
    remove(units_of(driver)[0])
    recover(driver.state(), view=ConsoleView(num_rounds=2))
    assert len(driver.state().journal.all("lost")) == 1
    remove(driver.folder.pairs(cycle(0)))
    driver.run()
    assert 0 in {index for index, _ in driver.generators.grown}, "the prompts of the lost unit"
    assert content(driver) == content(whole) and not driver.state().journal.all("lost")


def test_generators_are_asked_for_nothing_before_the_folder_is_verified(tmp_path, monkeypatch) -> None:
    driver = killed(tmp_path, stop_after=7)
    flip(driver.folder.adapter(cycle(0)) / "adapter_model.safetensors")
    monkeypatch.setattr(FakeGenerators, "counters", lambda self: pytest.fail("started"))
    with pytest.raises(DamageError):
        driver.run()
