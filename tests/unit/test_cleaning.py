"""The released code's cleaning, held to what the released functions themselves made of some 3,000 strings.

`tests/data/released_cleaning.jsonl` was made by calling utils.clean_tree and utils.extract_new_text of YiyangZhou/CSR
at 353de42 on strings of ours: `text` is what a node added to its parent, `scored` what CLIP would see of it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fakes import ScriptedEngine, TableScorer, sentence, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from csr_ray.records import Prompt
from csr_ray.rollout.cleaning import scored_text
from csr_ray.rollout.search import grow_tree

TABLE = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "released_cleaning.jsonl").read_text().splitlines()
]
CLEAN = [row["scored"] for row in TABLE if row["scored"] and row["scored"] == row["scored"].strip()]
DROPPED = [row["text"] for row in TABLE if row["scored"] is None]


def test_every_string_of_the_table_is_cleaned_as_the_release_cleaned_it() -> None:
    wrong = [(row, found) for row in TABLE if (found := scored_text(row["text"])) != row["scored"]]
    assert not wrong, f"{len(wrong)} of {len(TABLE)}: {wrong[:5]}"
    assert len(CLEAN) > 1000 and len(DROPPED) > 1000


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("A well-lit T-shirt.", "A welllit Tshirt."),
        ("\u201cStop\u201d, it says \u2013 in red.", "Stop, it says  in red."),
        ("A cat \U0001f600.", "A cat ."),
        ("a, a, a, a, a, a", "a, a, a, a, a, a"),
        ("a &nbsp; b &nbsp; c", "a &nbsp; b &nbsp; c"),
        ("a &nbsp;&nbsp; c", None),
        ("the the the the the there.", None),
        ("x           y", None),
        ("A--.", None),
        ("\u4e00\u53ea\u732b\u5728\u8fd9\u91cc\u3002", "\u4e00\u53ea\u732b\u5728\u8fd9\u91cc"),
        ("\u042f \u0437\u0434\u0435\u0441\u044c.", None),
    ],
)
def test_the_cases_worth_knowing(text: str, scored: str | None) -> None:
    assert scored_text(text) == scored
    assert {"text": text, "scored": scored} in TABLE


@given(st.sampled_from(CLEAN), st.sampled_from(["\u2014", "\U0001f600", "-", "@", "\u2019", "\u201c"]), st.data())
def test_a_stripped_character_anywhere_changes_nothing(text: str, character: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    assert scored_text(text[:place] + character + text[place:]) == text


@given(st.sampled_from(DROPPED), st.sampled_from([" ", "  ", "\t"]))
def test_white_space_around_saves_nothing(text: str, space: str) -> None:
    assert scored_text(space + text + space) is None


def test_the_scorer_sees_the_cleaned_text_and_the_tree_keeps_the_raw_one() -> None:
    table = {
        (): [
            sentence("A well-lit room.", ids=(10,)),
            sentence("No.", ids=(11,)),
            sentence("A star.", ids=(12,), ended=True),
        ],
        (10,): [sentence("A T-shirt.", ids=(13,), ended=True)],
        (11,): [sentence("A heart.", ids=(14,), ended=True)],
    }
    scorer = TableScorer({"A welllit room.": 40.0, "A star.": 30.0, "A Tshirt.": 20.0})
    config = tiny_config(search={"keep_all_up_to": 5}, reward={"cleaning": "released"})
    tree = asyncio.run(
        grow_tree(
            Prompt(id="p", image="i.png", text="Describe."),
            engine=ScriptedEngine(table),
            scorer=scorer,
            search=config.search,
            reward=config.reward,
            policy_version=0,
            seed=0,
        )
    )
    seen = {node.text: (node.scored_text, node.image_score) for node in tree.candidates}
    assert seen == {
        "A well-lit room.": ("A welllit room.", 40.0),
        "No.": (None, None),
        "A star.": ("A star.", 30.0),
        "A T-shirt.": ("A Tshirt.", 20.0),
        "A heart.": (None, None),  # behind a dropped sentence
    }
