"""A generator that only sleeps, as an actor of real Ray; importable by name in Ray's workers, and light."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from dataclasses import replace
from typing import Any

from latency_model import LatencyModel, Weather, times_of

from actors.process.pulse import Heart, Progress, Pulse
from csr_ray.counters import Counters
from csr_ray.records import Cycle, Prompt, Rollout


class SleepingGenerator:
    """Takes as long for a prompt as the simulation says, and returns the same rollout for all.

    Args:
        mean_s: seconds of a mean rollout.
        slowness: how much longer this one takes.
        payload: the rollout, pickled.
    """

    def __init__(self, *, mean_s: float, slowness: float, weather: Weather, seed: int, payload: bytes) -> None:
        self._mean_s, self._weather, self._seed = mean_s * slowness, weather, seed
        self._latency = LatencyModel.measured()
        self._payload = payload
        self._last_s = 0.0

    def pulse(self) -> Pulse:
        return Heart(Progress(), what="its sleep").pulse()

    async def start(self, registry: Any) -> int:
        return 0

    async def counters(self) -> Counters:
        return Counters(engine_steps=1)

    async def rollout(self, prompt: Prompt, cycle: Cycle) -> Rollout:
        times = times_of(prompt.id, latency=self._latency, weather=self._weather, seed=self._seed)
        await asyncio.sleep(self._mean_s * times)
        self._last_s = time.time()
        made: Rollout = pickle.loads(self._payload)
        return replace(made, prompt=prompt, policy_version=cycle.policy_version)

    async def last_s(self) -> float:
        """When its last rollout was done, by this machine's clock; 0.0 if it did none."""
        return self._last_s

    async def pid(self) -> int:
        return os.getpid()
