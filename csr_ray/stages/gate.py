"""Gate: a phase that made the policy worse is not handed over; no truth is needed to see it.

The same prompts of the run are answered by the policy before a phase and by the one behind it, and what they said is
compared (`csr_ray.evaluation.health`). A policy that is worse is taken back: its training is voided in the journal,
with what spoke against it, and the phase is trained again on the same examples with half the dose. After
`gate.retries` of these the run ends early, with the policy that it had. It ends at the first where the examples
themselves are at fault, because training less on them would not mend that.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

from csr_ray.config.schema import Config
from csr_ray.data.images import check_image
from csr_ray.evaluation.health import (
    BROKEN,
    EVIDENCE,
    IMAGE,
    PREFERENCES,
    REPEATS,
    REWARD,
    SELF_BLEU,
    TOKENS,
    Finding,
    Limits,
    compare_health,
    compare_preferences,
    values_of,
)
from csr_ray.machine.workload import gate_answer_tokens
from csr_ray.methods.base import Dropped
from csr_ray.ports import Generators, Machinery, Prompts
from csr_ray.records import Cycle, JsonDict, Phase, Probing, Prompt, Rollout, Target, TrainResult
from csr_ray.stages.close import keep_account
from csr_ray.stages.refusals import refusals
from csr_ray.stages.state import RunState
from csr_ray.stages.turn import Turn
from csr_ray.stages.vanished import Sieve
from csr_ray.stages.view import View
from csr_ray.store.tables import read_rollouts
from csr_ray.training.dose import held_out_share, is_held_out

PHASE = "gate"
_MOST_PAIRS = _MOST_TREES = 256  # whose answers are looked at; more say no more
# What says how much worse a figure may be; of pairs, what ranks them.
_KEYS: Mapping[str, tuple[str, ...]] = {
    REWARD: ("gate.reward_loss",),
    IMAGE: ("gate.reward_loss",),
    EVIDENCE: ("gate.reward_loss",),
    REPEATS: ("gate.share_rise",),
    BROKEN: ("gate.share_rise",),
    SELF_BLEU: ("gate.self_bleu_rise",),
    PREFERENCES: ("reward.aggregate", "reward.weight"),
}


def probe(state: RunState, turn: Turn, *, version: int, generators: Generators, view: View) -> None:
    """Let policy `version`, which the generators serve now, answer the gate's prompts, and commit what was found.

    There is nothing to do without a gate, or if the journal has this version's figures.
    """
    if not state.config.gate.enabled or state.journal.find("probe", version=version):
        return
    started_s = time.perf_counter()
    asked = gate_prompts(state, turn.prompts)
    round_index = turn.cycle.round_index
    cycle = Cycle(round_index=round_index, phase=Phase(name=PHASE, probing=_probing(state)), policy_version=version)
    answered: list[Rollout] = []
    num_failed = 0
    mute: list[str] = []
    with view.stage("check", total=len(asked), unit="prompts", round_index=round_index) as stage:
        sieve = Sieve(unreadable=check_image, find=turn.readable)
        for result in sieve.sift(generators.rollout(asked, cycle=cycle, num=len(asked))):
            if isinstance(result, Rollout):
                answered.append(result)
            else:
                num_failed += 1
                # Only these tell of the policy: a picture that is gone and an engine that died do not.
                if result.fault == "policy" and result.id is not None:
                    mute.append(result.id)
            stage.advance(tokens=result.stats.num_tokens if isinstance(result, Rollout) else 0)
            keep_account(state, round_index=round_index)
    place = {prompt.id: number for number, prompt in enumerate(asked)}
    answered.sort(key=lambda rollout: place[rollout.prompt.id])
    state.journal.commit(
        "probe",
        version=version,
        values=values_of(answered, mute=mute),
        prompts=len(answered),
        failed=num_failed,
        tokens=sum(rollout.stats.num_tokens for rollout in answered),
        seconds=time.perf_counter() - started_s,
    )


def accept(state: RunState, turn: Turn, trained: TrainResult, *, machinery: Machinery, view: View) -> bool:
    """Whether the phase's policy, which is published, stays; if not, it has been taken back.

    After too many refusals, or one for what is wrong with the examples themselves, the run has ended
    (`RunState.ended`), and the policy before the phase is served.
    """
    if not state.config.gate.enabled or state.journal.find("verdict", version=trained.version):
        return True
    cycle, generators = turn.cycle, machinery.generators
    probe(state, turn, version=trained.version, generators=generators, view=view)
    of_answers = _findings(state, cycle)
    findings = [*_preferences(state, cycle), *of_answers]
    faults = [finding.fault for finding in findings if finding.fault]
    is_final = any(finding.fault and finding.name == PREFERENCES for finding in findings)
    verdict: JsonDict = {
        "version": trained.version,
        "attempt": len(refusals(state.journal, cycle)) + 1,
        "findings": [finding.to_plain() for finding in findings],
        "faults": faults,
        "final": is_final,
        "dose": _dose_in_short(trained),
    }
    if not faults:
        state.journal.commit("verdict", **cycle.key, **verdict)
        if few := _too_few(state, trained, of_answers=of_answers):
            view.say(f"{cycle}: {few}", is_warning=True)
        return True
    refused = f"refused: {', '.join(faults)} ({_in_words(findings, config=state.config)})"
    verdict["spent"] = _spent(state, cycle, trained)
    state.journal.again([{**cycle.key, "what": "train", "reason": refused, "verdict": verdict}])
    generators.withdraw(trained.version)
    machinery.trainer.withdraw(trained.version)
    if state.ended:
        why = ", and less training on the same examples would not mend it" if is_final else ""
        view.say(
            f"{cycle} is {refused}{why}. The run ends here, with the policy before it (version "
            f"{trained.version - 1}); change these keys, or set gate.enabled=false, in another run.dir",
            is_warning=True,
        )
    else:
        view.say(f"{cycle} is {refused}: trained again with half the dose", is_warning=True)
    return False


def _too_few(state: RunState, trained: TrainResult, *, of_answers: Sequence[Finding]) -> str:
    """What to say where little or nothing could be compared; "": enough was."""
    if not of_answers:
        return "too few answers to compare the policy with the one before it"
    probed = state.journal.find("probe", version=trained.version)
    assert probed is not None
    asked = probed["prompts"] + probed["failed"]
    if probed["failed"] <= asked / 2:
        return ""
    return f"{probed['failed']} of {asked} prompts of the gate have no answer; the policy is compared by the others"


def _spent(state: RunState, cycle: Cycle, trained: TrainResult) -> JsonDict:
    """What the refused attempt took: its own lines are voided with it."""
    published = state.journal.find("publish", **cycle.key)
    probed = state.journal.find("probe", version=trained.version)
    assert published is not None and probed is not None
    look = {name: probed[name] for name in ("prompts", "failed", "tokens", "seconds")}
    return {"train": trained.seconds, "publish": published["seconds"], "gate": look}


def gate_prompts(state: RunState, prompts: Prompts) -> list[Prompt]:
    """The prompts that every version answers: those that are held out of every phase, as far as there are so many.

    A prompt whose pair is held out in one phase is held out in all (`csr_ray.training.dose.is_held_out`). Where they
    are too few, the first prompts of the file join them. With a fixed dose, or too few prompts to hold pairs out,
    nothing is held out, and these prompts are trained on like any others.
    """
    num, seed = state.config.gate.prompts, state.config.run.seed
    a_round = min(prompts.num, state.config.data.per_round or prompts.num)
    share = held_out_share(a_round, share=state.config.train.held_out) or state.config.train.held_out
    looked_at = min(prompts.num, int(2 * num / share))
    held = (prompt for prompt in prompts.take(num=looked_at) if is_held_out(prompt.id, seed=seed, share=share))
    found = list(itertools.islice(held, num))
    known = {prompt.id for prompt in found}
    if len(found) < num:
        others = (prompt for prompt in prompts.take(num=min(prompts.num, num)) if prompt.id not in known)
        found += itertools.islice(others, num - len(found))
    return found


def _probing(state: RunState) -> Probing:
    config = state.config
    return Probing(
        max_tokens=gate_answer_tokens(config),
        image_weight=config.reward.weight if state.method.needs_scorer else None,
        image_in_nats=config.reward.image_unit == "nats",
    )


def _findings(state: RunState, cycle: Cycle) -> list[Finding]:
    before = state.journal.find("probe", version=cycle.policy_version)
    after = state.journal.find("probe", version=cycle.policy_version + 1)
    assert after is not None
    if before is None:  # of a run that an earlier version of this program began
        return []
    gate = state.config.gate
    limits = Limits(
        reward=gate.reward_loss,
        growth=gate.length_growth,
        length=gate.length_factor,
        share=gate.share_rise,
        self_bleu=gate.self_bleu_rise,
    )
    return compare_health(
        before["values"],
        after=after["values"],
        limits=limits,
        seed=state.config.run.seed,
        middle=_middle(state, upto=cycle.round_index),
    )


def _middle(state: RunState, *, upto: int) -> float | None:
    """Between the image scores of what is there and of what is not: halfway from the worst to the best sentence.

    As a median over the trees of the first cycle whose method asks the scorer, as a rule the run's first, in which
    the base says the most that is not there. Later policies say less of it, and the middle of theirs lies among
    sentences that are all true. None: no round up to `upto` asks it, or no tree has two sentences that it looked at.
    """
    scored = (index for index in range(upto + 1) if state.method_of_round(index).needs_scorer)
    if (first := next(scored, None)) is None:
        return None
    middles = []
    for rollout in itertools.islice(_rollouts(state, state.cycles(first)[0]), _MOST_TREES):
        known = [score for node in rollout.candidates if (score := node.scores.get("image")) is not None]
        if len(known) > 1:
            middles.append((max(min(known), 0.0) + max(max(known), 0.0)) / 2)
    return statistics.median(middles) if middles else None


def _rollouts(state: RunState, cycle: Cycle) -> Iterator[Rollout]:
    """A cycle's rollouts, in order; those of a file that was lost are left out."""
    lost = {state.folder.root / name for entry in state.journal.all("lost", **cycle.key) for name in entry["names"]}
    for unit in state.journal.units(**cycle.key).in_order():
        if (path := state.folder.candidates(cycle, unit=unit.name)) not in lost:
            yield from read_rollouts(path)


def _preferences(state: RunState, cycle: Cycle) -> list[Finding]:
    """What the scorer alone says of the phase's own pairs; nothing where it had no say in them."""
    if not state.method_of_round(cycle.round_index).needs_scorer or not state.config.reward.weight:
        return []
    chosen: list[float] = []
    rejected: list[float] = []
    for rollout in _rollouts(state, cycle):
        made = state.method.examples(cycle.phase, rollout)
        for example in () if isinstance(made, Dropped) else made:
            scores = {target.role: _image_score(rollout, target) for target in example.targets}
            best, worst = scores.get("chosen"), scores.get("rejected")
            if best is not None and worst is not None:
                chosen.append(best)
                rejected.append(worst)
        if len(chosen) >= _MOST_PAIRS:
            break
    return compare_preferences(chosen, rejected=rejected, seed=state.config.run.seed)


def _image_score(rollout: Rollout, target: Target) -> float | None:
    """The mean over an answer's sentences on the scale 0 to 100; None: the scorer said nothing of it."""
    scores = [rollout.candidates[node].scores.get("image") for node in target.nodes]
    known = [max(score, 0.0) for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _dose_in_short(trained: TrainResult) -> JsonDict:
    return {name: trained.dose[name] for name in ("learning_rate", "lr_sum", "reason") if name in trained.dose}


def _in_words(findings: Sequence[Finding], *, config: Config) -> str:
    """What changed, and the keys by which that is at fault, with their values."""
    return ", ".join(
        f"{finding.name.replace('_', '-')} {finding.before:.3g} to {finding.after:.3g} at "
        + " and ".join(f"{key}={_value_of(key, config=config)}" for key in _keys(finding))
        for finding in findings
        if finding.fault
    )


def _keys(finding: Finding) -> tuple[str, ...]:
    if finding.name == TOKENS:
        return ("gate.length_growth" if finding.after > finding.before else "gate.length_factor",)
    return _KEYS[finding.name]


def _value_of(key: str, *, config: Config) -> str:
    section, name = key.split(".")
    value = getattr(getattr(config, section), name)
    return f"{value:g}" if isinstance(value, float) else str(value)
