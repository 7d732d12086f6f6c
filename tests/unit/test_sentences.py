"""Where a sentence ends, whatever way its text was cut into tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.generate import expand
from actors.generate.expand import Draft, Expansion, Tokens
from csr_ray.config.schema import Search
from csr_ray.rollout.sentences import Ending, ending, first_end

END = 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("A cat. A dog.", "A cat."),
        ("A cat.\nA dog.", "A cat."),
        ("A cat.", "A cat."),
        ("Really?! Yes.", "Really?!"),
        ("Go! Now.", "Go!"),
        ("It is 3.5 metres long. Good.", "It is 3.5 metres long."),
        ("Mr. Fox met Dr. Owl. They ate.", "Mr. Fox met Dr. Owl."),
        ("Fruit, e.g. an apple, lies here. Yes.", "Fruit, e.g. an apple, lies here."),
        ("The sign (e.g. red) says \u201cStop.\u201d Cars wait.", "The sign (e.g. red) says \u201cStop.\u201d"),
        ('It says "Stop." Cars wait.', 'It says "Stop."'),
        ("1. A cat sits. 2. A dog.", "1. A cat sits."),
        ("Wait... what? Yes.", "Wait..."),
        ("There are 3. Two run.", "There are 3."),
        ("See example.com for more. Bye.", "See example.com for more."),
        ("The U.S.A. team. Go.", "The U.S.A."),  # initials before a space end a sentence, as the rule says
    ],
)
def test_the_first_sentence(text: str, sentence: str) -> None:
    end = first_end(text)
    assert end is not None and text[:end] == sentence


@pytest.mark.parametrize("text", ["", "no stop", "3.5", "Mr.", "e.g.", "1.", "version 2.0", "a.b"])
def test_no_sentence_ends_here(text: str) -> None:
    assert first_end(text) is None


@pytest.mark.parametrize(
    ("text", "judged"),
    [
        (" A red star.", Ending.WHOLE),
        (" A red star.\n", Ending.WHOLE),
        (" There are 3.", Ending.UNSURE),
        (" The U.", Ending.UNSURE),
        (" Go!", Ending.UNSURE),
        (" e.", Ending.UNSURE),
        (" Mr.", Ending.OPEN),
        (" e.g.", Ending.OPEN),
        (" 1.", Ending.OPEN),
        (" a cat", Ending.OPEN),
    ],
)
def test_what_is_known_at_a_stop(text: str, judged: Ending) -> None:
    assert ending(text) is judged


class Letters:
    """A tokenizer with a token for each of the first 128 characters."""

    all_special_ids = (0, END)
    unk_token_id = None
    pad_token = "\0"

    def __len__(self) -> int:
        return 128

    def convert_tokens_to_ids(self, token: str) -> int:
        return ord(token)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids if not (skip_special_tokens and i in self.all_special_ids))

    def batch_decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(row, skip_special_tokens=False) for row in rows]


class Reciter:
    """A model that says one text and ends, whatever it is asked after."""

    def __init__(self, text: str) -> None:
        self.ids = (*(ord(letter) for letter in text), END)

    async def decode(self, suffix: Sequence[int], options: Sequence[dict[str, Any]]) -> list[list[Draft]]:
        assert tuple(suffix) == self.ids[: len(suffix)], "a continuation must go on from what was said"
        return [[self._draft(len(suffix), one)] * one.get("n", 1) for one in options]

    def _draft(self, start: int, options: dict[str, Any]) -> Draft:
        ids = self.ids[start : start + options["max_tokens"]]
        cut = next((i for i, token in enumerate(ids) if token in options["stop_token_ids"] or token == END), None)
        if cut is None:
            return Draft(ids=ids, logps=(-1.0,) * len(ids))
        ids = ids[: cut + 1]
        ended = ids[-1] == END
        return Draft(ids=ids, logps=(-1.0,) * len(ids), stop=None if ended else ids[-1], ended=ended)


words = st.sampled_from(
    [
        "A",
        "red",
        "cat",
        "3",
        "3.5",
        "1",
        "Mr.",
        "e.g.",
        "sits",
        "ran.",
        "dog.",
        "Go!",
        "Why?",
        "Wait...",
        "U.S.",
        '"No."',
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(words, min_size=1, max_size=12), st.integers(1, 60), st.sampled_from([1, 2, 32]))
def test_an_expansion_cuts_where_the_whole_text_would_be_cut(spoken: list[str], limit: int, most_asked: int) -> None:
    """However many of the stops the engine is told of."""
    with patch.object(expand, "_MOST_STOPS_ASKED", most_asked):
        check_cut(" ".join(spoken), limit=limit)


def check_cut(text: str, *, limit: int) -> None:
    search = Search(candidates=2)
    tokens = Tokens.of(Letters(), search=search, ends=[END], unused=0)  # type: ignore[arg-type]
    reciter = Reciter(text)
    sentence, other = asyncio.run(
        Expansion(search, tokens).children(
            reciter.decode, prompt_ids=(), prefix_ids=(), num=2, max_tokens=limit, seed=1
        )
    )
    end = first_end(text)
    expected = text if end is None else text[:end]
    assert sentence.text == expected[:limit].strip() == other.text
    assert sentence.ended == (end is None and len(text) < limit)
    assert sentence.token_ids == reciter.ids[: len(sentence.token_ids)]
    assert len(sentence.logps) == len(sentence.token_ids) <= limit


def test_a_request_names_the_plainest_stops_and_a_coupled_one_all() -> None:
    stops = {".": 90, ".\n\n": 80, "!": 70, ' ("!")': 1, "...": 2, ").": 3}
    texts = {token: text for text, token in stops.items()}
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: texts[ids[0]])
    with patch.object(expand, "_MOST_STOPS_ASKED", 4):
        tokens = Tokens(tokenizer, frozenset(texts), frozenset([END]), 0)  # type: ignore[arg-type]
        assert tokens.asked == [70, 80, 90, 3]
        expansion = Expansion(Search(expand="diverse_greedy"), tokens)
        assert expansion._sampled(n=5, seed=0, max_tokens=9)["stop_token_ids"] == tokens.asked
        assert set(expansion._member(5, max_tokens=9)["stop_token_ids"]) == tokens.stops
    assert len(Tokens(tokenizer, frozenset(texts), frozenset([END]), 0).asked) == 6  # type: ignore[arg-type]


def test_a_draft_is_cut_as_if_the_engine_had_known_all_stops() -> None:
    tokens = Tokens(None, frozenset([7, 8]), frozenset([END]), 0)  # type: ignore[arg-type]
    cut = Expansion(Search(), tokens)._cut
    whole = Draft(ids=(1, 2, 7), logps=(-1.0, -2.0, -3.0), stop=7)
    assert cut(whole) == whole
    assert cut(replace(whole, stop=None)) == whole, "the stop that it was not told of came last"
    assert cut(Draft(ids=(1, 2, 7, 5, END), logps=(-1.0, -2.0, -3.0, -4.0, -5.0), ended=True, full=True)) == whole
    assert cut(Draft(ids=(1, 2, 7, 5, 8), logps=(-1.0, -2.0, -3.0, -4.0, -5.0), stop=8)) == whole
    without = Draft(ids=(1, END), logps=(-1.0, -2.0), ended=True)
    assert cut(without) == without
