"""The method that trains on what people have decided: from their file to pairs. The engine is a fake."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from annotated_runs import write_run
from fakes import tiny_config
from rich.console import Console

from csr_ray.__main__ import main
from csr_ray.annotation.items import find_places, pair_items
from csr_ray.annotation.verdicts import Annotations, Verdict
from csr_ray.app.annotate import export
from csr_ray.config.load import load_config
from csr_ray.errors import ConfigError
from csr_ray.methods.base import Dropped, Method, method_of
from csr_ray.methods.people import read_pairs
from csr_ray.records import Example, Phase, Prompt, Rollout
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_rollouts, write_rollouts

ROOT = Path(__file__).parents[2]
QUESTION = "Describe the picture."


class Words:
    """Gives each word a number and ends an answer with 2; it is never asked to say anything."""

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*(sum(word.encode()) + 3 for word in text.split()), 2)


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """What `csr-ray annotate` writes where Ada prefers, of four prompts, the run's choice, the other, neither, and
    the run's choice in both rounds."""
    run = write_run(tmp_path / "run", num_rounds=2)
    annotations = Annotations(run / "annotations")
    for place in find_places(RunFolder(run)):
        for item, verdict in zip(pair_items(place)[0], ("left", "right", "tie", "left"), strict=True):
            if place.round_index == 0 or item.example.id == "p3":
                sides = (item.example.chosen, item.example.rejected)
                annotations.add("ada", verdict=Verdict.of(item, sides=sides, verdict=verdict, seconds=1.0, time=""))
    output = run / "annotations" / "pairs.parquet"
    export(str(run), output=output, console=Console(quiet=True))
    return output


def people(path: Path | str) -> Method:
    return method_of(tiny_config(method="people", people={"pairs": str(path)}))


def prompt_of(number: int, *, text: str = QUESTION) -> Prompt:
    return Prompt(id=f"p{number}", image=f"{number}.png", text=text)


def rolled(method: Method, prompt: Prompt) -> Rollout:
    (phase,) = method.phases(0)
    return asyncio.run(
        method.rollout(phase, prompt, engine=Words(), scorer=None, policy_version=3, seed=11)  # type: ignore[arg-type]
    )


def made(method: Method, rollout: Rollout) -> list[Example]:
    found = method.examples(method.phases(0)[0], rollout)
    assert not isinstance(found, Dropped), found
    return list(found)


def test_what_people_prefer_is_chosen_in_the_policy_s_own_tokens_without_a_reference(judged: Path) -> None:
    method = people(judged)
    (phase,) = method.phases(0)
    assert (phase.objective, phase.num_answers, phase.has_reference) == (None, 2, False)
    assert not method.needs_scorer
    for number, begins in ((0, "A red circle"), (1, "There is a blue dog"), (3, "A red circle")):
        rollout = rolled(method, prompt_of(number))
        (example,) = made(method, rollout)
        chosen, rejected = example.chosen, example.rejected
        assert chosen.text.startswith(begins) and f"number {number}" in chosen.text
        assert chosen.token_ids == Words().answer_ids(chosen.text) != rejected.token_ids
        assert chosen.logp is rejected.logp is None
        assert (chosen.reward, rejected.reward, chosen.num_sentences) == (1.0, 0.0, 2)
        assert (example.method, example.policy_version, example.ask) == ("people", 3, prompt_of(number).ask)
        assert method.rates(rollout) == {"shorter_won": (int(number == 1), 1)}


def test_a_prompt_on_which_nothing_was_decided_is_refused_by_name(judged: Path) -> None:
    method = people(judged)
    assert [method.refuses(prompt_of(number)) for number in (0, 1, 3)] == [None] * 3
    for number in (2, 9):
        assert "people have decided no pair on this id" in str(method.refuses(prompt_of(number)))
    other = prompt_of(0, text="How many dogs?")
    assert method.refuses(other) == f"people.pairs has this id with another question: {QUESTION!r}"


def test_all_pairs_of_a_prompt_are_trained_on_and_a_pair_of_two_rounds_once(judged: Path, tmp_path: Path) -> None:
    assert pq.read_table(judged)["id"].to_pylist() == ["p0", "p1", "p3", "p3"]
    assert {id: len(pairs) for id, pairs in read_pairs(str(judged)).items()} == {"p0": 1, "p1": 1, "p3": 1}
    table = pq.read_table(judged)
    rows = table.to_pylist()
    rows[3]["rejected"][0]["content"] = "A cat."
    pq.write_table(table.from_pylist(rows, schema=table.schema), tmp_path / "two.parquet")
    method = people(tmp_path / "two.parquet")
    assert method.phases(0)[0].max_examples_a_prompt == 2
    rollout = rolled(method, prompt_of(3))
    assert [example.rejected.text[:5] for example in made(method, rollout)] == ["There", "A cat"]
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (again,) = read_rollouts(tmp_path / "unit.parquet")
    assert made(method, again) == made(method, rollout), "a resumed run gets the same"


def test_answers_of_the_same_tokens_are_no_pair(judged: Path) -> None:
    method = people(judged)
    rollout = rolled(method, prompt_of(0))
    same = tuple(replace(candidate, token_ids=(1, 2)) for candidate in rollout.candidates)
    found = method.examples(Phase(), replace(rollout, candidates=same))
    assert isinstance(found, Dropped) and found.reason == "answers_equal"


def test_a_file_is_found_at_a_url_and_in_the_home_folder(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(judged.parent))
    assert read_pairs("~/pairs.parquet") == read_pairs(judged.as_uri()) == read_pairs(str(judged))


def test_a_file_that_gives_nothing_is_one_line_and_exit_code_2(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    table = pq.read_table(judged)
    (tmp_path / "text").write_text("no table")
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    pq.write_table(table.drop_columns(["chosen"]), tmp_path / "other.parquet")
    said = {
        "gone.parquet": "cannot be read: no such file; csr-ray annotate RUN_DIR writes such a file",
        "text": "no Parquet file of pairs (",
        "other.parquet": "no Parquet file of pairs (",
        "empty.parquet": "has no pair; let people decide some with csr-ray annotate RUN_DIR",
    }
    config = ROOT / "configs" / "tiny-world.yaml"
    for name, words in said.items():
        path = tmp_path / name
        command = ["run", str(config), "--dry-run", "method=people", f"people.pairs={path}", "run.rounds=1"]
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"csr-ray: people.pairs = {str(path)!r}: {words}"), line


def test_the_key_is_required_and_any_config_of_csr_can_be_run_with_it(judged: Path) -> None:
    config = ROOT / "configs" / "tiny-world.yaml"
    with pytest.raises(ConfigError, match=r"^people\.pairs: missing"):
        load_config(config, overrides=["method=people"])
    with pytest.raises(ConfigError, match=r"^people\.pair = 'x': unknown key"):
        load_config(config, overrides=["method=people", f"people.pairs={judged}", "people.pair=x"])
    method = method_of(load_config(config, overrides=["method=people", f"people.pairs={judged}"]))
    assert method.name == "people"
