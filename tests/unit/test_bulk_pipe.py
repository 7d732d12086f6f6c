"""What becomes of errors in the actors of bulk work, without Ray: the words that the user reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray.cloudpickle
import ray.exceptions

from actors.data.bulk import Workers, _Pipe, do_work
from actors.data.score import CaptionScorer, caption_scorers
from actors.data.work import ERROR, _in_words
from csr_ray.config.schema import Scorer, Scorers
from csr_ray.data.reading import Rules
from csr_ray.errors import ActorFailure, ConfigError, UserError
from csr_ray.machine.placement import ActorOptions
from csr_ray.store.parts import Work

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


def workers_of(*, num: int = 1, calls_at_once: int = 1) -> Workers:
    options = ActorOptions(num_cpus=1, num_gpus=0)
    return Workers(
        make=Refuses, arguments={}, schema=SCHEMA, num=num, options=options, calls_at_once=calls_at_once, retries=2
    )


def test_a_scorers_deaths_at_one_piece_are_bounded() -> None:
    scorer, rules = Scorer(model="a/b"), Rules(folders=())
    assert caption_scorers(scorer, scorers=Scorers(), rules=rules).retries == Scorers().restarts
    assert caption_scorers(scorer, scorers=Scorers(restarts=2), rules=rules).retries == 2


@pytest.mark.parametrize(
    ("num", "says"),
    [
        (1, "at one piece, part_000000010 ("),
        (2, "at one piece, one of part_000000010, part_000000030, part_000000040, part_000000050 ("),
        (9, "at one piece, one of part_000000010, part_000000030, part_000000040, part_000000050 and 4 more ("),
    ],
)
def test_deaths_at_one_piece_name_it(monkeypatch: pytest.MonkeyPatch, num: int, says: str) -> None:
    works = [Work(position, 10, None) for position in range(0, 100, 10)]

    def died(_: Any) -> Iterator[pa.Table]:
        for position in (0, 20):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, SCHEMA):
                pass
            yield pa.table({"position": [position], "rows": [sink.getvalue().to_pybytes()]})
        raise ActorFailure("Ray Data: The actor died unexpectedly") from ray.exceptions.ActorDiedError()

    monkeypatch.setattr("actors.data.bulk.tables", died)
    monkeypatch.setattr("actors.data.bulk.dataset_of", lambda _: SimpleNamespace(map_batches=lambda *_, **__: None))
    with pytest.raises(ActorFailure) as caught:
        list(do_work(works, workers=workers_of(num=num)))
    assert str(caught.value).startswith(f"actors died 3 times {says}")
    assert str(caught.value).endswith("Ray Data: The actor died unexpectedly")
