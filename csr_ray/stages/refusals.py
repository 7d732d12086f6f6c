"""What the journal says of refused trainings: the lines that void them carry the verdict."""

from __future__ import annotations

from collections import Counter

from csr_ray.records import Cycle, JsonDict
from csr_ray.store.journal import Journal


def refusals(journal: Journal, cycle: Cycle) -> list[JsonDict]:
    """The verdicts on the phase's trainings that were refused, oldest first."""
    voided = journal.all("again", what="train", **cycle.key)
    return [entry["verdict"] for entry in voided if "verdict" in entry]


def ended(journal: Journal, *, retries: int) -> JsonDict | None:
    """Which phase was refused more often than it may be tried again, so that the run ended there; None: none was.

    A verdict that is final, because the examples themselves are at fault, ends the run at once. `version` is the
    policy that the run ended with.
    """
    num_refused: Counter[tuple[int, str]] = Counter()
    for entry in journal.all("again", what="train"):
        if "verdict" not in entry:
            continue
        phase = (entry["round"], entry["phase"])
        num_refused[phase] += 1
        if num_refused[phase] > retries or entry["verdict"].get("final"):
            version = entry["verdict"]["version"] - 1
            return {"round": phase[0], "phase": phase[1], "version": version, "reason": entry["reason"]}
    return None
