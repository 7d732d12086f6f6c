"""What the driver holds of finished rollouts until their unit is done, and how often it asks Ray about calls.

Both grow with the generators: 256 of them have 16,384 prompts in flight.
"""

from __future__ import annotations

import pickle
import tracemalloc

from actors.pool.supervisor import settle_s_of
from csr_ray.records import Candidate, Prompt, Rollout
from csr_ray.stages.roll_out import _OpenUnit

NUM = 200
# Of a tree of 19 candidates; as objects it has 24 KB.
MOST_BYTES = 8_000


def tree(number: int) -> Rollout:
    candidates = tuple(
        Candidate(
            node=node,
            text=f"There is a star in red on the left side of number {node}.",
            token_ids=tuple(range(1000 + node, 1013 + node)),
            logp=-2.0 - node,
            scores={"self": 80.0 + node, "image": 30.0 + node},
            reward=50.0 + node,
        )
        for node in range(19)
    )
    prompt = Prompt(id=f"prompt {number}", image=f"{number}.jpg", text="What?")
    return Rollout(prompt=prompt, candidates=candidates, policy_version=0, seed=number)


def test_a_finished_rollout_takes_little_memory_until_its_unit_is_done() -> None:
    payloads = [pickle.dumps(tree(number)) for number in range(NUM)]  # as Ray hands them over
    unit = _OpenUnit(position=0)
    tracemalloc.start()
    try:
        for payload in payloads:
            unit.put(pickle.loads(payload))
        held = tracemalloc.get_traced_memory()[0] / NUM
    finally:
        tracemalloc.stop()
    assert held < MOST_BYTES, held
    assert unit.unpacked() == [tree(number) for number in range(NUM)]


def test_few_calls_are_read_at_once_and_of_many_a_tenth_of_the_time_goes_into_looking() -> None:
    assert settle_s_of(1) == settle_s_of(64) == 0.02
    for num in (16_384, 65_536):
        look_s = 1e-6 * num
        assert look_s / settle_s_of(num) <= 0.1
        assert settle_s_of(num) < 1.0
