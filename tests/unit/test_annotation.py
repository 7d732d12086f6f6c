"""A person as judge, without the network: what is asked, what is kept, how far people agree, and the pairs of it."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from annotated_runs import rollout_of, write_run
from checked_runs import finished_run
from fakes import tiny_config
from rich.console import Console

from csr_ray.__main__ import main
from csr_ray.annotation.agreement import (
    DISAGREE,
    ONLY_SKIPPED,
    TIE,
    Decision,
    agreement,
    agreements,
    cohens_kappa,
    decide,
    with_reward,
)
from csr_ray.annotation.export import NOT_FOUND, decided_pairs
from csr_ray.annotation.items import (
    ONE_ANSWER,
    SAME_TEXT,
    UNREADABLE,
    Item,
    SentenceScores,
    candidate_items,
    digest,
    find_places,
    in_drawn_order,
    items_by_nodes,
    left_and_right,
    pair_items,
    places_of_round,
)
from csr_ray.annotation.verdicts import UNDO, Annotations, Verdict, VerdictFile, person_of
from csr_ray.app.annotate import Asked, annotate, export, opened_server
from csr_ray.app.annotate_server import AnnotationServer
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.records import Candidate
from csr_ray.store.places import Place
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples, write_rollouts

QUIET = Console(quiet=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def place_of(run: Path) -> Place:
    return find_places(RunFolder(run))[0]


def items_of(run: Path) -> list[Item]:
    return pair_items(place_of(run))[0]


def verdict_on(item: Item, verdict: str, *, swapped: bool = False) -> Verdict:
    """As if the chosen answer had stood on the left, or on the right if `swapped`."""
    sides = (item.example.chosen, item.example.rejected)
    return Verdict.of(item, sides=sides[::-1] if swapped else sides, verdict=verdict, seconds=2.0, time="")


def opinions_of(items: list[Item], **said: str) -> dict:
    """By name what everybody says, a letter an item: c (chosen is better), r, t(ie), s(kip), or - for nothing."""
    words = {"c": "left", "r": "right", "t": "tie", "s": "skip"}
    return {
        name: {
            item.key: verdict_on(item, words[letter])
            for item, letter in zip(items, letters, strict=False)
            if letter != "-"
        }
        for name, letters in said.items()
    }


# ---- what is asked ----


def test_every_pair_of_the_run_is_an_item_that_its_reward_has_ranked(run: Path) -> None:
    items, dropped = pair_items(place_of(run))
    assert [item.example.id for item in items] == ["p0", "p1", "p2", "p3"] and not dropped
    assert all(item.is_ranked and item.example.chosen.nodes == (0, 1) for item in items)


def test_the_first_phase_of_a_round_has_the_name_that_the_journal_says(run: Path) -> None:
    (run / "journal.jsonl").write_text(
        'torn\n{"kind": "start"}\n{"round": 0, "phase": "describe"}\n{"round": 0, "phase": "infuse"}\n'
    )
    second = run / "round_000" / "infuse" / "candidates"
    write_rollouts(second / "unit_b.parquet", rollouts=[rollout_of(9, image="x.png")])
    assert [(place.phase, place.pairs.is_file()) for place in find_places(RunFolder(run))] == [
        ("describe", True),
        ("infuse", False),
    ]


def test_the_last_round_that_has_pairs_is_taken_while_a_later_one_is_rolled_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_rounds=2)
    (run / "round_001" / "pairs.parquet").unlink()
    places = find_places(RunFolder(run))
    assert [p.round_index for p in places_of_round(places, number=None, from_candidates=False)] == [0]
    assert [p.round_index for p in places_of_round(places, number=2, from_candidates=True)] == [1]
    with pytest.raises(ConfigError, match=r"--round = 2: has no pairs; rounds with pairs: 1"):
        places_of_round(places, number=2, from_candidates=False)


def test_a_run_without_pairs_yet_says_that_candidates_can_be_judged(tmp_path: Path) -> None:
    places = find_places(RunFolder(write_run(tmp_path / "run", has_pairs=False)))
    assert places_of_round(places, number=None, from_candidates=True) == places
    with pytest.raises(ConfigError, match="choose --from candidates"):
        places_of_round(places, number=None, from_candidates=False)


def test_two_whole_answers_are_drawn_and_ranked_by_the_run_s_reward(run: Path) -> None:
    items, dropped = candidate_items(place_of(run), reward=tiny_config().reward, seed=0)
    assert len(items) == 4 and not dropped
    assert {item.example.chosen.nodes for item in items} == {(0, 1)}
    assert all(item.is_ranked for item in items)
    assert [item.key for item in items] == [item.key for item in items_of(run)], "the same answers, the same key"


def test_without_its_config_trees_are_not_ranked(run: Path) -> None:
    items, _ = candidate_items(place_of(run), reward=None, seed=0)
    assert not any(item.is_ranked for item in items)


def test_prompts_with_one_answer_critics_words_and_damaged_units_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "round_000"
    rollout = rollout_of(1, image="x.png")
    plain = {"token_ids": (1,), "logp": -1.0}
    critic = Candidate(node=1, text="The first is better.", role="critic", asked="Which is better?", **plain)
    alone = (Candidate(node=0, text="A red circle.", role="greedy", **plain), critic)
    write_rollouts(folder / "candidates" / "unit_a.parquet", rollouts=[replace(rollout, candidates=alone)])
    (folder / "candidates" / "unit_b.parquet").write_bytes(b"PAR1 but not for long")
    items, dropped = candidate_items(Place(0, "main", folder), reward=None, seed=0)
    assert not items and dropped == Counter({ONE_ANSWER: 1, UNREADABLE: 1})


def test_answers_of_the_same_tokens_are_no_pair(tmp_path: Path) -> None:
    folder = tmp_path / "round_000"
    plain = {"role": "annotated", "token_ids": (), "logp": 0.0}  # of a file: words alone
    both = tuple(Candidate(node=node, text=f"Answer {node}.", **plain) for node in (0, 1))
    rollout = replace(rollout_of(1, image="x.png"), candidates=both)
    write_rollouts(folder / "candidates" / "unit_a.parquet", rollouts=[rollout])
    items, dropped = candidate_items(Place(0, "main", folder), reward=None, seed=0)
    assert not items and dropped == Counter({ONE_ANSWER: 1})


def test_pairs_that_read_the_same_are_left_out(run: Path) -> None:
    table = pq.read_table(run / "round_000" / "pairs.parquet")
    at = table.schema.get_field_index("rejected")
    pq.write_table(table.set_column(at, "rejected", table["chosen"]), run / "round_000" / "pairs.parquet")
    items, dropped = pair_items(place_of(run))
    assert not items and dropped == Counter({SAME_TEXT: 4})


def test_damaged_pairs_are_one_line(run: Path) -> None:
    (run / "round_000" / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="csr-ray check says what is damaged"):
        items_of(run)


def test_the_order_is_drawn_and_a_limit_is_its_beginning(tmp_path: Path) -> None:
    items = items_of(write_run(tmp_path / "run", num_prompts=12))
    drawn = in_drawn_order(items, seed=0, limit=None)
    assert drawn != items and sorted(i.example.id for i in drawn) == sorted(i.example.id for i in items)
    assert in_drawn_order(items, seed=0, limit=5) == drawn[:5] == in_drawn_order(items[::-1], seed=0, limit=5)
    assert in_drawn_order(items, seed=1, limit=None) != drawn


def test_sides_are_drawn_for_each_item_and_person(tmp_path: Path) -> None:
    items = items_of(write_run(tmp_path / "run", num_prompts=40))
    first = {
        name: [left_and_right(item, name=name, seed=0)[0].role == "chosen" for item in items] for name in ("a", "b")
    }
    assert 8 < sum(first["a"]) < 32
    assert first["a"] != first["b"]
    assert first["a"] == [left_and_right(item, name="a", seed=0)[0].role == "chosen" for item in items]


def test_sentences_have_their_scores_and_colours(run: Path) -> None:
    item = items_of(run)[0]
    scores = SentenceScores([item.place])
    first, second = scores.sentences(item, target=item.example.chosen)
    assert (first.text, first.image_score, first.colour) == ("A red circle stands at the left.", 32.0, 8)
    assert second.colour is not None and second.colour < 8
    told = scores.sentences(item, target=item.example.rejected)
    assert [sentence.image_score for sentence in told] == [24.0, 20.0]


def test_an_answer_that_the_candidates_do_not_tell_is_one_sentence(run: Path) -> None:
    item = items_of(run)[0]
    other = replace(item.example.chosen, text="Another.", nodes=(0,))
    assert [s.text for s in SentenceScores([item.place]).sentences(item, target=other)] == ["Another."]


# ---- what is kept ----


@pytest.mark.parametrize("text", ["", "../ada", "a/b", ".", "..", "ada.jsonl", "-x", "é", "a" * 41, "a\0b", "a b"])
def test_a_name_that_could_be_a_path_is_none(text: str) -> None:
    assert person_of(text) is None


def test_names_are_one_whatever_the_case() -> None:
    assert person_of(" Ada_L-1 ") == "ada_l-1"


def test_a_verdict_is_a_line_with_the_sides_as_they_stood(run: Path) -> None:
    item = items_of(run)[0]
    annotations = Annotations(run / "annotations")
    assert annotations.add("ada", verdict=verdict_on(item, "left", swapped=True))
    (line,) = (run / "annotations" / "ada.jsonl").read_text().splitlines()
    plain = json.loads(line)
    assert {**plain, "left_digest": "", "right_digest": ""} == {
        "id": "p0",
        "round": 0,
        "phase": "main",
        "left_nodes": [2, 3],
        "right_nodes": [0, 1],
        "left_digest": "",
        "right_digest": "",
        "verdict": "left",
        "seconds": 2.0,
        "time": "",
    }
    assert Verdict.from_plain(plain).better == digest(item.example.rejected.text)


def test_a_second_verdict_on_one_item_does_not_count(run: Path) -> None:
    item = items_of(run)[0]
    annotations = Annotations(run / "annotations")
    assert annotations.add("ada", verdict=verdict_on(item, "left"))
    assert not annotations.add("ada", verdict=verdict_on(item, "right", swapped=False))
    assert annotations.of("ada")[item.key].verdict == "left"


def test_what_is_taken_back_does_not_count_and_can_be_said_anew(run: Path) -> None:
    first, second = items_of(run)[:2]
    annotations = Annotations(run / "annotations")
    annotations.add("ada", verdict=verdict_on(first, "left"))
    annotations.add("ada", verdict=verdict_on(second, "tie"))
    assert annotations.add("ada", verdict=verdict_on(second, UNDO))
    assert not annotations.add("ada", verdict=verdict_on(second, UNDO)), "nothing is left to take back"
    assert list(annotations.of("ada")) == [first.key]
    annotations.add("ada", verdict=verdict_on(second, "right"))
    reread = Annotations(run / "annotations")
    assert [verdict.verdict for verdict in reread.of("ada").values()] == ["left", "right"]
    assert len((run / "annotations" / "ada.jsonl").read_text().splitlines()) == 4


def test_a_torn_last_line_is_left_out_and_does_not_spoil_the_next(run: Path) -> None:
    first, second = items_of(run)[:2]
    path = run / "annotations" / "ada.jsonl"
    VerdictFile(path).add(verdict_on(first, "left"))
    whole = path.read_bytes()
    for torn in range(1, len(whole) - 1):
        path.write_bytes(whole + whole[:torn])
        file = VerdictFile(path)
        assert list(file.standing) == [first.key] and file.num_bad_lines == 1
    file.add(verdict_on(second, "right"))
    assert list(VerdictFile(path).standing) == [first.key, second.key]
    assert VerdictFile(path).num_bad_lines == 1


@pytest.mark.parametrize(
    "line",
    ["[]", "7", "null", '{"id": "p0"}', "[" * 100_000, "\x00", '{"verdict": "best"}', '"\\ud800"'],
    ids=lambda line: line[:12],
)
def test_lines_that_are_no_verdicts_are_counted(run: Path, line: str) -> None:
    path = run / "annotations" / "ada.jsonl"
    path.parent.mkdir()
    path.write_text(line + "\n")
    VerdictFile(path).add(verdict_on(items_of(run)[0], "tie"))
    file = VerdictFile(path)
    assert len(file.standing) == 1 and file.num_bad_lines == 1


def test_what_another_process_adds_is_seen(run: Path) -> None:
    first, second = items_of(run)[:2]
    here, there = Annotations(run / "annotations"), Annotations(run / "annotations")
    here.add("ada", verdict=verdict_on(first, "left"))
    there.add("ada", verdict=verdict_on(second, "left"))
    assert list(here.of("ada")) == [first.key, second.key]


# ---- how far people agree ----


def test_cohens_kappa_is_that_of_the_textbook_table() -> None:
    """20 both yes, 15 both no, 5 and 10 otherwise: 0.7 agreed, 0.5 by chance."""
    said = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohens_kappa(said) == pytest.approx(0.4)


@pytest.mark.parametrize("said", [[], [("a", "a")] * 5], ids=["no item", "one and the same of all"])
def test_kappa_is_not_defined_everywhere(said: list) -> None:
    assert cohens_kappa(said) is None


def test_skipped_items_do_not_count_in_an_agreement(run: Path) -> None:
    opinions = opinions_of(items_of(run), ada="crts", bob="ccsc")
    found = agreement("ada", "bob", opinions=opinions)
    assert (found.num_items, found.num_agreed) == (2, 1)


def test_sides_do_not_matter_to_an_agreement(run: Path) -> None:
    items = items_of(run)
    opinions = {
        "ada": {item.key: verdict_on(item, "left") for item in items},
        "bob": {item.key: verdict_on(item, "right", swapped=True) for item in items},
    }
    (found,) = agreements(opinions)
    assert (found.num_items, found.num_agreed) == (4, 4)


def test_people_without_an_item_in_common_are_not_compared(run: Path) -> None:
    assert agreements(opinions_of(items_of(run), ada="cc--", bob="--cc")) == []


@pytest.mark.parametrize(
    "said, better, reason",
    [
        ("c", "chosen", ""),
        ("ccr", "chosen", ""),
        ("rrs", "rejected", ""),
        ("cs", "chosen", ""),
        ("cr", None, DISAGREE),
        ("ct", None, DISAGREE),
        ("crt", None, DISAGREE),
        ("ctt", None, TIE),
        ("t", None, TIE),
        ("ss", None, ONLY_SKIPPED),
    ],
)
def test_more_than_half_of_those_who_did_not_skip_decide(
    run: Path, said: str, better: str | None, reason: str
) -> None:
    item = items_of(run)[0]
    opinions = opinions_of([item], **{f"p{i}": letter for i, letter in enumerate(said)})
    found = decide(item.key, opinions=opinions)
    assert isinstance(found, Decision)
    assert (found.better, found.reason) == (
        None if better is None else digest(item.example.target(better).text),
        reason,
    )


def test_the_reward_is_right_where_people_choose_what_it_chose(run: Path) -> None:
    items = items_of(run)
    opinions = opinions_of(items, ada="ccrt", bob="ccs-")
    found = {one.who: one for one in with_reward(opinions, items={item.key: item for item in items})}
    assert [(who, one.num_items) for who, one in found.items()] == [("ada", 3), ("bob", 2), ("majority", 3)]
    share = found["ada"].share
    assert share is not None and share.value == pytest.approx(2 / 3) and share.low < 2 / 3 < share.high


def test_what_the_reward_has_not_ranked_says_nothing_of_it(run: Path) -> None:
    items, _ = candidate_items(place_of(run), reward=None, seed=0)
    (found,) = with_reward(opinions_of(items, ada="cccc"), items={item.key: item for item in items})
    assert found.num_items == 0 and found.share is None


# ---- the pairs ----


def test_what_people_decide_has_the_columns_of_the_run_s_pairs_and_who_decided(run: Path, tmp_path: Path) -> None:
    items = items_of(run)
    annotations = Annotations(run / "annotations")
    for name, said in opinions_of(items, ada="crtc", bob="crt-", cy="crrr").items():
        for verdict in said.values():
            annotations.add(name, verdict=verdict)
    output = tmp_path / "people.parquet"
    export(str(run), output=output, console=QUIET)
    own, people = pq.read_table(run / "round_000" / "pairs.parquet"), pq.read_table(output)
    assert people.schema.names == [*own.schema.names, "annotators"]
    assert people.drop_columns(["annotators"]).schema.equals(own.schema)
    assert people.schema.metadata[b"huggingface"] == own.schema.metadata[b"huggingface"]
    rows = people.to_pylist()
    assert [(row["id"], row["chosen_nodes"]) for row in rows] == [("p0", [0, 1]), ("p1", [2, 3])]
    assert [(row["chosen_reward"], row["rejected_reward"]) for row in rows] == [(1.0, 0.0), (1.0, 0.0)]
    assert {row["method"] for row in rows} == {"annotate"} and rows[0]["annotators"] == ["ada", "bob", "cy"]
    theirs, ours = read_examples(output), read_examples(run / "round_000" / "pairs.parquet")
    assert theirs[1].chosen.token_ids == ours[1].rejected.token_ids
    assert theirs[1].chosen.logp == ours[1].rejected.logp
    assert (theirs[0].policy_version, theirs[0].seed) == (ours[0].policy_version, ours[0].seed)


def test_a_reward_is_the_share_of_those_who_prefer_the_answer(run: Path) -> None:
    item = items_of(run)[0]
    opinions = opinions_of([item], a="c", b="c", c="c", d="r", e="s")
    (example,) = decided_pairs(opinions, items={item.key: item}).examples
    assert (example.chosen.reward, example.rejected.reward) == (0.75, 0.25)


def test_answers_of_candidates_are_found_again_by_their_nodes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", has_pairs=False)
    items, _ = candidate_items(place_of(run), reward=None, seed=3)
    wanted = {item.key: [target.nodes for target in item.example.targets] for item in items}
    found = items_by_nodes(find_places(RunFolder(run)), wanted=wanted, reward=tiny_config().reward)
    assert found.keys() == wanted.keys()
    assert all(found[item.key].is_ranked for item in items)


def test_answers_that_are_gone_are_counted(run: Path) -> None:
    opinions = opinions_of(items_of(run), ada="c---")
    exported = decided_pairs(opinions, items={})
    assert exported.examples == () and exported.dropped == {NOT_FOUND: 1}


def test_a_run_that_was_started_anew_in_the_folder_takes_no_old_verdicts(run: Path, tmp_path: Path) -> None:
    opinions = opinions_of(items_of(run), ada="cccc")
    other = write_run(tmp_path / "elsewhere" / "run", words=" today")
    wanted = {key: [verdict.left_nodes, verdict.right_nodes] for key, verdict in opinions["ada"].items()}
    assert items_by_nodes(find_places(RunFolder(other)), wanted=wanted, reward=None) == {}


def test_pictures_that_the_run_s_pairs_hold_are_in_the_export_too(run: Path, tmp_path: Path) -> None:
    path = run / "round_000" / "pairs.parquet"
    table = pq.read_table(path)
    rows = [
        {**row, "image": {**row["image"], "bytes": b"picture " + row["id"].encode()}} for row in table.to_pylist()
    ]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    Annotations(run / "annotations").add("ada", verdict=verdict_on(items_of(run)[2], "left"))
    export(str(run), output=tmp_path / "out.parquet", console=QUIET)
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert row["image"]["bytes"] == b"picture p2"


def test_a_run_as_the_loop_leaves_it_is_judged_and_stays_sound(tmp_path: Path) -> None:
    driver = finished_run(tmp_path / "run")
    run = driver.folder.root
    places = find_places(driver.folder)
    assert [(place.round_index, place.phase) for place in places] == [(0, "main"), (1, "main")]
    (place,) = places_of_round(places, number=None, from_candidates=False)
    items, _ = pair_items(place)
    assert place.round_index == 1 and items and all(item.is_ranked for item in items)
    scores = SentenceScores([place])
    assert all(
        s.image_score is not None for s in scores.sentences(items[0], target=items[0].example.chosen) if s.text
    )
    for item in items:
        Annotations(run / "annotations").add("ada", verdict=verdict_on(item, "right"))
    export(str(run), output=run / "annotations" / "pairs.parquet", console=QUIET)
    people = read_examples(run / "annotations" / "pairs.parquet")
    assert [example.chosen.text for example in people] == [item.example.rejected.text for item in items]
    assert driver.check().sound


# ---- the command ----


def test_what_is_printed_at_the_end(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, said in opinions_of(items_of(run), ada="crct", bob="ccct").items():
        for verdict in said.values():
            Annotations(run / "annotations").add(name, verdict=verdict)
    assert main(["annotate", str(run), "--export", str(tmp_path / "out.parquet")]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "ada 4 3 1 0 67 % 2.0" in words
    assert "ada, bob 4 75 %" in words
    assert "majority 2 100 %" in words
    assert "pairs, by the majority 2" in words
    assert "left out: people disagree 1" in words and "left out: tie 1" in words


def ended_session(run: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `csr-ray annotate` prints where it is ended as soon as it listens."""
    monkeypatch.setattr(AnnotationServer, "serve_forever", lambda self, **_: None)
    console = Console(record=True, width=200, quiet=False, file=io.StringIO())
    annotate(str(run), asked=Asked(), console=console)
    return " ".join(console.export_text().split())


def test_where_all_is_taken_back_the_pairs_of_before_are_taken_back_too(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, annotations = items_of(run)[0], Annotations(run / "annotations")
    assert ended_session(run, monkeypatch).endswith("No verdict was given; nothing is written.")
    assert not annotations.folder.exists()
    annotations.add("ada", verdict=verdict_on(item, "left"))
    ended_session(run, monkeypatch)
    pairs = run / "annotations" / "pairs.parquet"
    before = pq.read_table(pairs)
    assert before.num_rows == 1
    annotations.add("ada", verdict=verdict_on(item, UNDO))
    said = ended_session(run, monkeypatch)
    assert pq.read_table(pairs).num_rows == 0 and pq.read_schema(pairs) == before.schema
    assert f"Every verdict is taken back; {pairs} has no pair any more." in said and "nothing is written" not in said


def test_a_person_who_took_all_back_before_any_pairs_were_written_leaves_none(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, annotations = items_of(run)[0], Annotations(run / "annotations")
    annotations.add("ada", verdict=verdict_on(item, "left"))
    annotations.add("ada", verdict=verdict_on(item, UNDO))
    assert ended_session(run, monkeypatch).endswith("Every verdict is taken back; nothing is written.")
    assert not (run / "annotations" / "pairs.parquet").exists()


def test_verdicts_on_another_round_are_said_where_the_round_was_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", num_rounds=2)
    places = find_places(RunFolder(run))
    assert "--round" not in ended_session(run, monkeypatch)
    Annotations(run / "annotations").add("ada", verdict=verdict_on(pair_items(places[0])[0][0], "left"))
    assert "round 2 (pairs); people have begun round 1: --round 1 goes on with it" in ended_session(run, monkeypatch)


def test_nothing_judged_yet_is_exit_code_3(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["annotate", str(run), "--export", str(tmp_path / "out.parquet")]) == 3
    assert "nobody has judged anything yet" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    "run_dir, words",
    [
        ("s3://bucket/run", "RUN_DIR = s3://bucket/run: people judge a run in a folder of this machine"),
        ("nowhere", "no such folder"),
        (".", "no candidates and no pairs in it"),
    ],
)
def test_a_folder_that_cannot_be_judged_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, run_dir: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["annotate", run_dir]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said


def test_a_round_with_nothing_to_judge_says_why(run: Path) -> None:
    path = run / "round_000" / "pairs.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with (
        pytest.raises(NoDataError, match="nothing to judge in round 1: no pairs"),
        opened_server(RunFolder(run), asked=Asked(), console=QUIET),
    ):
        pass


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["annotate", "--help"])
    words = capsys.readouterr().out
    assert "csr-ray annotate runs/tiny-world --round 1 --limit 100" in words and "u: undo" in words
