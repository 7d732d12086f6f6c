"""AMBER: the counts of the official script on made answers, with and without word vectors; the traps by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.amber import Lexicon
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.benchmarks.questions import load_asked

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "benchmarks" / "amber.json").read_text())
GROUPS = {
    "Descriminative Task": "",
    "Exsitence": "existence_",
    "Attribute": "attribute_",
    "State": "state_",
    "Number": "number_",
    "Action": "action_",
    "Relation": "relation_",
}


def write_release(folder: Path, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    files = {**OFFICIAL, **changed}
    (folder / "annotations.json").write_text(json.dumps(files["annotations"]))
    (folder / "relation.json").write_text(json.dumps(files["relation"]))
    (folder / "safe_words.txt").write_text("\n".join(files["safe"]))
    if "queries" in files:
        (folder / "query").mkdir(exist_ok=True)
        (folder / "query" / "query_all.json").write_text(json.dumps(files["queries"]))
    return folder


def marked(tmp_path: Path, answers: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(answers))
    return mark_file("amber", answers=path, truth=write_release(tmp_path / "amber", **changed))


@pytest.mark.parametrize("kind", ["without_vectors", "with_vectors"])
def test_every_figure_is_that_of_the_official_script(kind: str, tmp_path: Path) -> None:
    """The answers, lexicon and vectors are made; `counts` and `printed` are what inference.py of
    junyangwang0410/AMBER at 534babf made of them, with this project's rule for nouns and the same vectors in the
    place of nltk and spaCy."""
    if kind == "with_vectors":
        folder = write_release(tmp_path / "amber")
        lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in OFFICIAL["vectors"].items()]
        (folder / "vectors.txt").write_text("\n".join(["2 6", *lines]))
    found = marked(tmp_path, OFFICIAL["answers"])
    counts, metrics = OFFICIAL["said"][kind]["counts"], found["metrics"]
    for name, above, below in (
        ("chair", "chair_score", "chair_num"),
        ("cover", "safe_cover_score", "safe_cover_num"),
        ("cog", "hallu_cover_score", "hallu_cover_num"),
    ):
        assert metrics[name] == pytest.approx(counts[above] / (counts[below] - 0.001)), name  # it starts at 0.001
    assert metrics["hal"] == pytest.approx(1 - counts["non_hallu_score"] / (counts["non_hallu_num"] - 0.001))
    for group, prefix in GROUPS.items():
        for name, value in OFFICIAL["said"][kind]["printed"][group].items():
            # It adds 0.001 or 0.0001 below the line of F1 and rounds before, so its F1 is lower by up to 0.1 points.
            assert 100 * metrics[f"{prefix}{name.lower()}"] == pytest.approx(value, abs=0.16), (group, name)
    assert (found["n"], found["skipped"]) == (420, {})


def test_vectors_let_near_synonyms_count_and_their_absence_is_said(tmp_path: Path) -> None:
    without, with_vectors = (OFFICIAL["said"][kind]["counts"] for kind in ("without_vectors", "with_vectors"))
    assert without["chair_score"] > with_vectors["chair_score"]
    found = marked(tmp_path, OFFICIAL["answers"])
    assert any("Near-synonyms beyond the lexicon are not recognised" in note for note in found["notes"])
    assert any("official script takes what nltk tags as nouns" in note for note in found["notes"])


def test_a_question_is_answered_by_exactly_yes_or_no(tmp_path: Path) -> None:
    annotations = [{"id": i, "type": "discriminative-relation", "truth": "no"} for i in range(1, 5)]
    answers = [{"id": i, "response": text} for i, text in enumerate(("No", "no", "No.", "Yes"), 1)]
    found = marked(tmp_path, answers, annotations=annotations)
    assert found["metrics"]["accuracy"] == 0.25
    assert found["metrics"]["other_rate"] == 0.5


def test_no_is_the_positive_class(tmp_path: Path) -> None:
    truths = ("no", "no", "yes", "yes")
    annotations = [{"id": i, "type": "discriminative-relation", "truth": truth} for i, truth in enumerate(truths, 1)]
    answers = [{"id": i, "response": text} for i, text in enumerate(("No", "Yes", "No", "Yes"), 1)]
    metrics = marked(tmp_path, [*answers[:3], answers[3]], annotations=annotations)["metrics"]
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.5, 0.5, 0.5)
    always_no = [{"id": i, "response": "No"} for i in range(1, 5)]
    metrics = marked(tmp_path, always_no, annotations=annotations)["metrics"]
    assert (metrics["precision"], metrics["recall"]) == (0.5, 1.0), "with yes as the positive class both were 0"


def test_the_precision_of_existence_is_1_whatever_is_said_and_the_result_says_so(tmp_path: Path) -> None:
    annotations = [{"id": i, "type": "discriminative-hallucination", "truth": "no"} for i in range(1, 4)]
    answers = [{"id": i, "response": text} for i, text in enumerate(("No", "Yes", "Yes"), 1)]
    found = marked(tmp_path, answers, annotations=annotations)
    assert (found["metrics"]["existence_precision"], found["metrics"]["existence_recall"]) == (
        1.0,
        pytest.approx(1 / 3),
    )
    assert "read its recall" in found["notes"][-1]


def test_words_with_a_capital_letter_are_no_nouns_as_in_the_official_script() -> None:
    lexicon = Lexicon(related={"sky": (), "person": ("man",), "bus": (), "leaf": ()}, safe=frozenset())
    assert lexicon.nouns("Sky over two buses, a man and men; leaves on the sky-blue sky") == [
        "bus",
        "man",
        "man",
        "leaf",
        "sky",
    ]


def test_it_is_asked_by_its_query_file(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "amber")
    with pytest.raises(ConfigError, match=r"no query/query_all.json there"):
        load_asked("amber", data=str(folder), unpack=tmp_path, limit=None)
    queries = [{"id": i, "image": f"AMBER_{i}.jpg", "query": "Describe this image."} for i in (1, 2)]
    (folder / "image").mkdir()
    (folder / "image" / "AMBER_2.jpg").write_bytes(b"")
    asked = load_asked("amber", data=str(write_release(folder, queries=queries)), unpack=tmp_path, limit=None)
    assert [(item.text, Path(item.image).name) for item in asked.items.by_id.values()] == [
        ("Describe this image.", "AMBER_1.jpg"),
        ("Describe this image.", "AMBER_2.jpg"),
    ]
    assert asked.items.skipped == {"an annotation without a query": 418}


def test_annotations_that_cannot_be_used_and_bad_vectors_are_named(tmp_path: Path) -> None:
    annotations = [
        3,
        {"id": 1},
        {"id": 2, "type": "generative", "truth": "x"},
        {"id": 3, "type": "x", "truth": "maybe"},
    ]
    with pytest.raises(ConfigError, match="no annotation of amber"):
        marked(tmp_path, [], annotations=annotations)
    word = next(iter(OFFICIAL["vectors"]))
    (write_release(tmp_path / "amber") / "vectors.txt").write_text(f"{word} 1 x\n")
    with pytest.raises(ConfigError, match=r"vectors.txt:1: no vector of"):
        marked(tmp_path, OFFICIAL["answers"])
