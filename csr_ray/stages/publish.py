"""Publish: brings every generator to the new policy version, which each has to prove."""

from __future__ import annotations

from csr_ray.ports import Generators
from csr_ray.records import Cycle, TrainResult
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View

# Share of an update that rounding may take before the user is told.
SWALLOWED_AT_MOST = 0.3


def publish(state: RunState, cycle: Cycle, trained: TrainResult, *, generators: Generators, view: View) -> None:
    """Bring every generator to the trained version, and commit the receipt of their proofs.

    If the journal has the receipt there is nothing to do: a resumed run starts its generators with that version.
    """
    if state.journal.find("publish", version=trained.version):
        return
    with view.stage("publish", total=1, unit="version", round_index=cycle.round_index) as stage:
        receipt = generators.publish(trained)
        stage.advance()
    state.journal.commit(
        "publish",
        **cycle.key,
        version=receipt.version,
        bytes=receipt.num_bytes,
        seconds=receipt.seconds,
        generators=receipt.num_generators,
        max_probe_gap=receipt.max_probe_gap,
        swallowed=receipt.swallowed,
        kept=receipt.kept,
        unseen=receipt.num_unseen,
        parts=dict(receipt.parts),
    )
    if receipt.num_unseen:
        view.say(
            f"{receipt.num_unseen} changed tensors of version {receipt.version} could not be looked at in the "
            "engine: their layers have unknown names or are divided in an unknown way. That they are right is shown "
            "by the probes alone (docs/training.md, Hand-over)",
            is_warning=True,
        )
    if receipt.swallowed > SWALLOWED_AT_MOST:
        view.say(
            f"the update is not much larger than the rounding steps of the {state.config.policy.dtype} "
            f"weights into which it is merged: {receipt.kept:.0%} of it arrived, and rounding adds noise of "
            f"{receipt.swallowed:.0%} of its size. A run with generators.publish=adapter serves and trains it "
            "unrounded; docs/training.md says more (What rounding takes)",
            is_warning=True,
        )
