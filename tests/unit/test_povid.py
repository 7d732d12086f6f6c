"""POVID: edits by rule and from a file, the pair of both phases, and what is refused. The engine is a fake."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import fsspec
import pytest
from fakes import tiny_config

from csr_ray.app.inputs import resolve_world
from csr_ray.config.load import load_config
from csr_ray.errors import ConfigError
from csr_ray.methods.base import Dropped, Method, method_of
from csr_ray.methods.povid import read_edits, with_an_invented_thing
from csr_ray.records import Example, Phase, Prompt, Rollout
from csr_ray.store.tables import read_rollouts, write_rollouts

CONFIG = Path(__file__).parents[2] / "configs" / "methods" / "povid.yaml"
OBJECTS = ("star", "moon", "arrow")
TRUTH = "A star in red is visible. Two stars are blue."
PROMPT = Prompt(id="p", image="i.png", text="Describe.", truth=f" {TRUTH}\n")


class Words:
    """Gives each word a number and ends an answer with 2; it is never asked to say anything."""

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*(sum(word.encode()) + 3 for word in text.split()), 2)


def by_rule(**keys: object) -> Method:
    return method_of(tiny_config(method="povid", povid={"edit": "rule", "objects": list(OBJECTS), **keys}))


def by_file(path: Path, *rows: dict) -> Method:
    path.write_text("\n".join(map(json.dumps, rows)))
    return method_of(tiny_config(method="povid", povid={"rejected": str(path)}))


def rolled(method: Method, *, phase: Phase, prompt: Prompt = PROMPT, seed: int = 11) -> Rollout:
    return asyncio.run(
        method.rollout(phase, prompt, engine=Words(), scorer=None, policy_version=3, seed=seed)  # type: ignore[arg-type]
    )


def outcome(method: Method, rollout: Rollout) -> Example | str:
    found = method.examples(Phase(), rollout)
    return found.reason if isinstance(found, Dropped) else found[0]


def test_an_edit_names_one_thing_that_the_truth_does_not_in_its_own_grammar() -> None:
    edits = {with_an_invented_thing(TRUTH, objects=OBJECTS, seed=str(seed)) for seed in range(60)}
    assert edits == {
        "A moon in red is visible. Two stars are blue.",
        "An arrow in red is visible. Two stars are blue.",
        "A star in red is visible. Two moons are blue.",
        "A star in red is visible. Two arrows are blue.",
        f"{TRUTH} A moon in red is visible.",
        f"{TRUTH} An arrow in red is visible.",
        f"{TRUTH} Two moons are blue.",
        f"{TRUTH} Two arrows are blue.",
    }
    assert with_an_invented_thing("Stars. An arrow.", objects=("star", "moon", "arrow"), seed="0") in {
        "Moons. An arrow.", "Stars. A moon.", "Stars. An arrow. Moons.", "Stars. An arrow. A moon.",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["A mooncake is here.", "", "A star, a moon and an arrow."])
def test_where_nothing_or_everything_is_named_there_is_no_edit(text: str) -> None:
    assert with_an_invented_thing(text, objects=OBJECTS, seed="0") is None


def test_plurals_in_es_are_mentions_and_get_the_ending_that_fits() -> None:
    said = {with_an_invented_thing("Two crosses.", objects=("star", "cross"), seed=str(seed)) for seed in range(20)}
    assert said == {"Two stars.", "Two crosses. Two stars."}
    said = {with_an_invented_thing("Two stars.", objects=("star", "cross"), seed=str(seed)) for seed in range(20)}
    assert said == {"Two crosses.", "Two stars. Two crosses."}


def test_both_phases_of_every_round_have_the_same_pair_and_no_logprob() -> None:
    method = by_rule()
    text, noise = method.phases(0)
    assert (text.objective, noise.objective) == (None, "dpo_noise")
    assert not text.has_reference and not noise.has_reference and text.name != noise.name
    pairs = [outcome(method, rolled(method, phase=phase, seed=seed)) for seed, phase in enumerate((text, noise))]
    for pair in pairs:
        assert isinstance(pair, Example)
        assert pair.chosen.text == TRUTH and pair.rejected.text != TRUTH
        assert pair.chosen.logp is pair.rejected.logp is None and pair.margin == 1.0
        assert pair.chosen.token_ids == Words().answer_ids(TRUTH) and pair.chosen.num_sentences == 2
        assert (pair.method, pair.policy_version, pair.ask) == ("povid", 3, PROMPT.ask)
    assert pairs[0].targets == pairs[1].targets  # type: ignore[union-attr]
    prompts = [Prompt(id=str(at), image="i.png", text="Describe.", truth=TRUTH) for at in range(40)]
    texts = {rolled(method, phase=text, prompt=prompt).candidates[1].text for prompt in prompts}
    assert len(texts) == 8, "other prompts have other edits"
    assert [phase.name for phase in by_rule(stages="text").phases(0)] == ["text"]
    assert [phase.name for phase in by_rule(stages="noise").phases(0)] == ["noise"]


def test_edits_of_a_file_are_found_by_id_and_the_others_are_dropped_by_a_reason(tmp_path: Path) -> None:
    method = by_file(
        tmp_path / "edits.jsonl",
        {"id": "p", "rejected": " A moon. "},
        {"id": "p", "rejected": "The second of an id."},
        {"id": 7, "rejected_conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A ring."}]},
        {"id": "same", "rejected": TRUTH},
        {"id": "empty", "rejected": " "},
        {"id": "odd", "rejected": ["no text"]},
        {"rejected": "Of nobody."},
    )
    phase = method.phases(0)[0]

    def found(prompt_id: str) -> Example | str:
        prompt = Prompt(id=prompt_id, image="i.png", text="Describe.", truth=TRUTH)
        rollout = rolled(method, phase=phase, prompt=prompt)
        assert method.rates(rollout)["edited"] == (len(rollout.candidates) - 1, 1)
        return outcome(method, rollout)

    pairs = {name: found(name) for name in ("p", "7", "same", "empty", "odd", "nobody")}
    assert [pairs[name].rejected.text for name in ("p", "7")] == ["A moon.", "A ring."]  # type: ignore[union-attr]
    assert pairs["same"] == "edit_equals_truth"
    assert {pairs[name] for name in ("empty", "odd", "nobody")} == {"no_edit_of_the_truth"}


def test_a_prompt_without_an_edit_in_the_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    method = by_file(tmp_path / "edits.jsonl", {"id": "p", "rejected": "A moon."})
    assert method.refuses(PROMPT) is None
    other = Prompt(id="other", image="i.png", text="Describe.", truth=TRUTH)
    assert method.refuses(other) == "povid.rejected has no edit of its truth"
    assert by_rule().refuses(other) is None, "a rule needs no file"


def test_the_file_may_be_a_url_or_in_the_home_or_in_the_embedded_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = json.dumps({"id": "p", "rejected": "A moon."})
    (tmp_path / "edits.jsonl").write_text(row)
    fsspec.filesystem("memory").pipe("/edits/edits.jsonl", row.encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("memory://edits/edits.jsonl", "~/edits.jsonl"):
        assert method_of(tiny_config(method="povid", povid={"rejected": place})).refuses(PROMPT) is None
    in_world = tiny_config(method="povid", world={"enabled": True}, povid={"rejected": "${world}/edits.jsonl"})
    assert method_of(in_world).name == "povid", "nothing is read before the world is there"
    assert method_of(resolve_world(in_world, folder=tmp_path)).refuses(PROMPT) is None


def test_a_file_that_gives_nothing_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^povid\.rejected = '.*gone\.jsonl': cannot be read: no such file"):
        read_edits(str(tmp_path / "gone.jsonl"))
    with pytest.raises(ConfigError, match=r"no row has an `id` and a text `rejected`"):
        by_file(tmp_path / "edits.jsonl", {"id": "p", "answer": "A moon."}, {"id": 3})


def test_what_is_read_back_from_disk_gives_the_same_example(tmp_path: Path) -> None:
    method = by_rule()
    rollout = rolled(method, phase=method.phases(0)[0])
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (again,) = read_rollouts(tmp_path / "unit.parquet")
    assert outcome(method, again) == outcome(method, rollout)
    assert method.rates(again) == method.rates(rollout)
    assert [candidate.role for candidate in again.candidates] == ["truth", "edited"]


@pytest.mark.parametrize("truth", [None, "", " \n"])
def test_a_prompt_without_a_truth_is_refused_by_name(truth: str | None) -> None:
    method = by_rule()
    assert method.refuses(PROMPT) is None
    assert "truth is missing" in str(method.refuses(Prompt(id="p", image="i", text="t", truth=truth)))


def test_its_config_is_whole_and_its_keys_are_strict() -> None:
    method = method_of(load_config(CONFIG))
    assert (method.name, method.needs_scorer) == ("povid", False)
    assert [phase.name for phase in method.phases(0)] == ["text", "noise"]
    with pytest.raises(ConfigError, match=r"rejected = null contradicts edit = file"):
        load_config(CONFIG, overrides=["povid.edit=file"])
    with pytest.raises(ConfigError, match=re.escape("objects = [] contradicts edit = rule")):
        load_config(CONFIG, overrides=["povid.objects=[]"])
    with pytest.raises(ConfigError, match=r"^povid\.edits = 'rule': unknown key; did you mean edit\?"):
        load_config(CONFIG, overrides=["povid.edits=rule"])
