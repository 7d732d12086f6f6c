"""How sentences travel to the scorers: what is ready together goes together, an image always to the same scorer."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.score.client import ScorerPool
from csr_ray.errors import ScorerFailure
from csr_ray.records import Picture

A = Picture(path="a")


class Actor:
    """Answers like a scorer actor; an image called `bad` is an error, `dead` ends the actor."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[Picture, tuple[str, ...]]]] = []
        self.score = self

    async def remote(self, asked: list[tuple[Picture, tuple[str, ...]]]) -> list[Any]:
        self.calls.append(asked)
        await asyncio.sleep(0)
        if any(picture.path == "dead" for picture, _ in asked):
            raise ConnectionError("the actor is gone")
        return [
            ValueError("no such image") if picture.path == "bad" else ([float(len(text)) for text in texts], 0)
            for picture, texts in asked
        ]


def test_what_is_ready_together_is_one_call_and_everybody_gets_its_own() -> None:
    actor = Actor()

    async def run() -> list[Any]:
        pool = ScorerPool([actor])
        return await asyncio.gather(*(pool.score(A, texts=["x" * length, "y"]) for length in range(1, 9)))

    assert asyncio.run(run()) == [([float(length), 1.0], 0) for length in range(1, 9)]
    assert len(actor.calls) == 1


class Scaled:
    """A scorer that says its logit scale, at the second time of asking."""

    def __init__(self) -> None:
        self.nats = self
        self.num_calls = 0

    async def remote(self) -> float:
        self.num_calls += 1
        await asyncio.sleep(0)
        if self.num_calls == 1:
            raise ConnectionError("the actor is busy")
        return 14.0


def test_the_logit_scale_is_asked_for_once_and_again_after_a_failure() -> None:
    scorer = Scaled()

    async def run() -> list[Any]:
        pool = ScorerPool([scorer])
        found = await asyncio.gather(pool.nats(), pool.nats(), return_exceptions=True)
        return [*map(type, found), *(await asyncio.gather(pool.nats(), pool.nats())), await pool.nats()]

    assert asyncio.run(run()) == [ConnectionError, ConnectionError, 14.0, 14.0, 14.0]
    assert scorer.num_calls == 2


def test_an_image_always_goes_to_the_same_scorer() -> None:
    actors = [Actor() for _ in range(4)]

    async def run() -> None:
        pool = ScorerPool(actors)
        for _ in range(3):
            await asyncio.gather(*(pool.score(Picture(path=f"image-{number}"), texts=["x"]) for number in range(40)))

    asyncio.run(run())
    homes = [{picture for call in actor.calls for picture, _ in call} for actor in actors]
    assert all(homes) and sum(len(home) for home in homes) == 40


def test_a_changed_picture_is_another_picture() -> None:
    """A noised image that went under the clean one's name would get the clean one's score."""
    keys = [picture.key for picture in (A, Picture(path="a", change="noise:500"), Picture(path="b"))]
    keys.append(Picture(path="a", change="noise:500", seed=1).key)
    assert len(set(keys)) == 4 and keys[0] == "a"


def test_one_bad_image_fails_alone_and_a_dead_scorer_fails_all_who_wait() -> None:
    async def run(*images: str) -> list[Any]:
        pool = ScorerPool([Actor()])
        return await asyncio.gather(
            *(pool.score(Picture(path=image), texts=["x"]) for image in images), return_exceptions=True
        )

    good, bad = asyncio.run(run("good", "bad"))
    assert good == ([1.0], 0) and isinstance(bad, ValueError)
    assert [type(answer) for answer in asyncio.run(run("good", "dead"))] == [ConnectionError] * 2


def test_a_caller_that_gave_up_does_not_disturb_the_others() -> None:
    async def run() -> Any:
        pool = ScorerPool([Actor()])
        first, second = (asyncio.ensure_future(pool.score(A, texts=["x"])) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert asyncio.run(run()) == ([1.0], 0)


class Mortal(Actor):
    """Dies at its first call, for good."""

    async def remote(self, asked: list[tuple[Picture, tuple[str, ...]]]) -> list[Any]:
        self.calls.append(asked)
        raise RayActorError(error_msg="gone")


def test_what_a_dead_scorer_was_asked_is_asked_again_of_the_one_that_takes_its_place() -> None:
    dead, new = Mortal(), Actor()

    async def run() -> list[Any]:
        pool = ScorerPool([dead])
        asking = [asyncio.ensure_future(pool.score(A, texts=["x" * length])) for length in range(1, 5)]
        await asyncio.sleep(0.05)
        later = asyncio.ensure_future(pool.score(A, texts=["x" * 5]))
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in (*asking, later)) and len(dead.calls) == 1, "nobody asks the dead again"
        pool.replace(0, life=1, scorer=new)
        pool.replace(0, life=0, scorer=dead)  # news that come late
        return await asyncio.gather(*asking, later)

    assert asyncio.run(run()) == [([float(length)], 0) for length in range(1, 6)]


def test_what_two_scorers_died_of_is_not_asked_of_a_third() -> None:
    """It may be the picture that kills them; whoever asked for it is told so."""
    scorers = [Mortal() for _ in range(3)]

    async def run() -> None:
        pool = ScorerPool([scorers[0]])
        asking = asyncio.ensure_future(pool.score(A, texts=["x"]))
        for life in (1, 2):
            await asyncio.sleep(0.05)
            pool.replace(0, life=life, scorer=scorers[life])
        await asking

    with pytest.raises(ScorerFailure, match="gone") as caught:
        asyncio.run(run())
    failure = pickle.loads(pickle.dumps(caught.value))
    assert failure.is_suspect and (failure.index, failure.life) == (0, 1)
    assert [len(scorer.calls) for scorer in scorers] == [1, 1, 0]


def test_where_nobody_takes_a_dead_scorers_place_another_scores_in_the_end() -> None:
    scorers = [Mortal(), Actor()]

    async def run() -> list[Any]:
        pool = ScorerPool(scorers, patience_s=0.05)
        pictures = [Picture(path=f"image-{number}") for number in range(8)]
        return await asyncio.gather(*(pool.score(picture, texts=["x"]) for picture in pictures))

    assert asyncio.run(run()) == [([1.0], 0)] * 8 and scorers[0].calls and scorers[1].calls


def test_without_any_scorer_left_the_dead_one_is_named() -> None:
    async def run() -> None:
        await ScorerPool([Mortal()], wait_s=0.1, patience_s=0.05).score(A, texts=["x"])

    with pytest.raises(ScorerFailure, match=r"scorer 0 died: .*gone") as caught:
        asyncio.run(run())
    assert not caught.value.is_suspect
