"""A driver that was held up for so long that another took over its run: it wakes with results, and writes none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeGenerators
from test_loop import pictures_that_nobody_looks_for
from test_stop_signals import CYCLE, state_of, units_of

from csr_ray.errors import LockLost
from csr_ray.records import Cycle, Prompt, Rejection, Rollout
from csr_ray.stages.recover import is_sound
from csr_ray.store.lock import Holder, LockFile, RunLock


class OtherGenerators(FakeGenerators):
    """Their results differ, as those of another GPU's kernels may; the first prompt has none."""

    def _rollout(self, prompt: Prompt, *, cycle: Cycle) -> Rollout | Rejection:
        if prompt.id == "p0":
            return prompt.refused("another reason")
        return replace(super()._rollout(prompt, cycle=cycle), seed=2)


def test_a_driver_that_lost_its_lock_changes_no_file_of_the_one_that_took_over(tmp_path: Path) -> None:
    held_up, other = state_of(tmp_path, unit=7), state_of(tmp_path, unit=7)
    store = LockFile(held_up.folder.lock)
    lock = RunLock.take(store, name="run.dir = 'r'", say=print, beat_s=60)
    held_up.journal.before_commit = lock.check
    held = store.read()
    assert held is not None and store.replace(replace(Holder.this_process(), token="other").to_bytes(), tag=held[1])
    list(units_of(other, generators=FakeGenerators(other.config)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    with pictures_that_nobody_looks_for(), pytest.raises(LockLost, match="writes nothing more"):
        list(units_of(held_up, generators=OtherGenerators(held_up.config)))
    lock.release()

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert is_sound(state_of(tmp_path))
    assert len(state_of(tmp_path).journal.units(**CYCLE.key).names) == 1
