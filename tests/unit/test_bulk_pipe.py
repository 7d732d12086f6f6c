"""What becomes of errors in the actors of bulk work, without Ray: the words that the user reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.cloudpickle
import ray.exceptions

from actors.data.bulk import _Pipe
from actors.data.score import CaptionScorer
from actors.data.work import ERROR, _in_words
from csr_ray.config.schema import Scorer, Scorers
from csr_ray.data.reading import Rules
from csr_ray.errors import ActorFailure, ConfigError, UserError

SCHEMA = pa.schema([("value", pa.int64())])


class Refuses:
    """A worker whose model is not there."""

    def __init__(self, error: Exception) -> None:
        raise error

    def rows(self, job: Any) -> Iterator[dict[str, Any]]:
        raise AssertionError("it was not made")


def said_by(make: type, *, arguments: dict[str, Any]) -> Exception:
    """What an actor of this kind hands on when it is given its first piece."""
    pipe = _Pipe(make, arguments=arguments, schema=SCHEMA)
    (table,) = pipe({"work": [ray.cloudpickle.dumps((0, None))]})
    (packed,) = table[ERROR.name].to_pylist()
    return ray.cloudpickle.loads(packed)


def test_what_the_user_can_mend_is_handed_on_by_the_first_piece() -> None:
    said = said_by(Refuses, arguments={"error": ConfigError("scorer.model = 'x': cannot be fetched: no network")})
    assert isinstance(said, ConfigError), "Ray would hand on its text only, in words of its own"
    assert str(said) == "scorer.model = 'x': cannot be fetched: no network"
    with pytest.raises(ActorFailure):
        said_by(Refuses, arguments={"error": ActorFailure("an engine could not start")})


def test_a_scorer_that_is_not_there_is_named_as_such(tmp_path: Path) -> None:
    arguments = {"scorers": Scorers(), "rules": Rules(folders=()), "wanted": None}
    said = said_by(CaptionScorer, arguments={**arguments, "scorer": Scorer(model=f"{tmp_path}/none")})
    assert isinstance(said, UserError)
    assert str(said).startswith("scorer.model = ") and "no such folder" in str(said)


def test_words_of_ray_have_no_colours() -> None:
    error = ray.exceptions.RayError("\x1b[36mray::MapWorker()\x1b[39m (pid=1) died\x1b[0m\nTraceback")
    assert _in_words(error) == "Ray Data: ray::MapWorker() (pid=1) died"
    ours = f"\x1b[31m{ActorFailure.__module__}.ActorFailure: \x1b[1mno room\x1b[0m"
    assert _in_words(ray.exceptions.RayError(ours)) == "no room"
