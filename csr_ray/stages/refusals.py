"""What the journal says of refused trainings, and of the end that they may put to a run.

The lines that void them carry the verdict. A phase without a single example is not trained at all, and such a line
ends the run there in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from csr_ray.records import Cycle, JsonDict
from csr_ray.store.journal import Journal


def refusals(journal: Journal, cycle: Cycle) -> list[JsonDict]:
    """The verdicts on the phase's trainings that were refused, oldest first."""
    voided = journal.all("again", what="train", **cycle.key)
    return [entry["verdict"] for entry in voided if "verdict" in entry]


def end_without_examples(journal: Journal, cycle: Cycle, *, dropped: Mapping[str, int]) -> str:
    """Commit that the run ends before this cycle, because there is nothing to train on; returns why."""
    counted = ", ".join(f"{reason} {num}" for reason, num in dropped.items())
    reason = f"left without a training example ({counted})"
    verdict: JsonDict = {
        "version": cycle.policy_version + 1,
        "attempt": 1,
        "findings": [],
        "faults": ["no training example"],
        "final": True,
        "dose": {},
    }
    journal.again([{**cycle.key, "what": "train", "reason": reason, "verdict": verdict}])
    return reason


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


def is_evaluated_whole(evaluations: Iterable[JsonDict], *, version: int) -> bool:
    """Whether one of these lines says that a policy version was asked about all images, not a share of them."""
    return any(entry["version"] == version and entry.get("limit") is None for entry in evaluations)


def is_finished(journal: Journal, *, rounds: int, retries: int) -> bool:
    """Whether the model is saved behind the last of so many rounds, or behind the one that the run ended in."""
    is_ended = ended(journal, retries=retries) is not None
    return any(
        entry["rounds"] >= rounds or (is_ended and entry.get("ended", False)) for entry in journal.all("finished")
    )
