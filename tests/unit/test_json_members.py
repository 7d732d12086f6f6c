"""A large JSON object read piece by piece."""

from __future__ import annotations

import io
import json
import random

import pytest

from csr_ray.evaluation import json_members
from csr_ray.evaluation.json_members import members


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 2**20])
def test_members_are_those_of_the_object_wherever_the_chunks_end(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_members, "_CHUNK_CHARS", chunk)
    rng = random.Random(0)
    rows = [{"id": rng.randrange(10**9), "x": [[1.5, -2e3]], "t": 'a "]}," \\ \u00e9'} for _ in range(20)]
    whole = {"info": {"year": 2014}, "n": 12345, "empty": [], "rows": rows, "none": None, "last": -1.25}
    found = list(members(io.StringIO(json.dumps(whole, indent=1))))
    expected = [
        ("info", {"year": 2014}),
        ("n", 12345),
        *(("rows", row) for row in rows),
        ("none", None),
        ("last", -1.25),
    ]
    assert found == expected
    assert list(members(io.StringIO(" {} "))) == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"a": [1, 2', '{"a"', '{"a": 1', '{"a" 1}', '{"a": tru}', '{"a": [1 2]}']
)
def test_a_text_that_is_no_whole_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        list(members(io.StringIO(text)))
