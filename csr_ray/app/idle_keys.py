"""Keys that would do nothing in a run are refused before it starts, so that nobody takes them for what they are not.

What a key does is up to the phases of the run's methods. A run that is there already is read with whatever its config
says, so nothing but what starts one asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from csr_ray.config.schema import Config, Train
from csr_ray.errors import ConfigError
from csr_ray.methods.base import Method, answers_a_prompt, method_of
from csr_ray.records import Phase

# Of the section `train`: by what it is to a phase, whose objective is the second argument.
_Reads = Callable[[Phase, str], bool]


def _is_of(*objectives: str) -> _Reads:
    return lambda phase, objective: objective in objectives


def _has_own_rejected_answers(phase: Phase, objective: str) -> bool:
    return phase.num_answers == 2 and objective in ("sigmoid", "sigmoid_average", "ipo", "dpo_positive")


def _takes_nll(phase: Phase, objective: str) -> bool:
    return phase.num_answers == 2 and phase.nll_weight is None


_READ_BY: Final[Mapping[str, tuple[_Reads, str]]] = {
    "label_smoothing": (_is_of("sigmoid"), "has the objective sigmoid"),
    "positive_penalty": (_is_of("dpo_positive"), "has the objective dpo_positive"),
    "noise_step": (_is_of("dpo_noise"), "has the objective dpo_noise"),
    "noise_weight": (_is_of("dpo_noise"), "has the objective dpo_noise"),
    "noise_collision": (_is_of("dpo_noise"), "has the objective dpo_noise"),
    "noise_overflow": (_is_of("dpo_noise"), "has the objective dpo_noise"),
    "view_weight": (_is_of("two_views"), "has the objective two_views"),
    "consistency_weight": (_is_of("two_views"), "has the objective two_views"),
    "rejected_logp": (_has_own_rejected_answers, "compares an answer with one rejected answer"),
    "nll_weight": (_takes_nll, "trains on pairs without an NLL weight of its own"),
}


def check_idle_keys(config: Config) -> None:
    """Look at what depends on the methods of the config.

    Raises:
        ConfigError: a key would do nothing, or the run nothing at all; names key, value and remedy.
    """
    methods = [method_of(one) for one in config.of_each_method]
    _check_training(config.train, methods=methods, names=config.method)
    _check_measuring(config, methods=methods)
    _check_rollouts(config, methods=methods)


def _check_training(train: Train, *, methods: Sequence[Method], names: str) -> None:
    changed = [key for key in _READ_BY if getattr(train, key) != Train.model_fields[key].default]
    if not changed and train.objective == Train.model_fields["objective"].default:
        return
    phases = [phase for method in methods for phase in method.phases(0)]
    objectives = [phase.objective or train.objective for phase in phases]
    for key in changed:
        reads, what = _READ_BY[key]
        if not any(map(reads, phases, objectives)):
            raise ConfigError(
                f"train.{key} = {getattr(train, key)!r}: it would do nothing, because no phase of method = {names!r} "
                f"{what}; leave it out"
            )
    if train.objective not in objectives and train.objective != Train.model_fields["objective"].default:
        raise ConfigError(
            f"train.objective = {train.objective!r}: it would do nothing, because "
            + (f"all phases of method = {names!r} name their own" if phases else f"method = {names!r} trains nothing")
            + "; leave it out"
        )


def _check_measuring(config: Config, *, methods: Sequence[Method]) -> None:
    if any(map(_trains, methods)):
        return
    benchmarks = config.eval.benchmarks
    if not benchmarks:
        raise ConfigError(
            f"eval.benchmarks = []: method = {config.method!r} trains nothing, and has nothing to measure then; "
            "name a benchmark, as eval.benchmarks=[world], and its files in eval.data"
        )
    if config.decoding.kind == "post_hoc" and set(benchmarks) == {"chair"}:
        raise ConfigError(
            f"eval.benchmarks = {list(benchmarks)}: method = {config.method!r} calibrates questions with given "
            "choices, and leaves descriptions as they are; name world or pope"
        )


def _check_rollouts(config: Config, *, methods: Sequence[Method]) -> None:
    if not config.decoding.rollouts:
        return
    answers = {method.name: answers_a_prompt(method) for method in methods}
    trees = [method.name for method in methods if answers[method.name] is None and _trains(method)]
    if trees:
        raise ConfigError(
            f"decoding.rollouts = true contradicts method = {trees[0]}: trees of sentences know no such decoding; "
            "leave it out, and decoding.kind counts where answers are measured"
        )
    if not any(answers.values()):
        raise ConfigError(
            f"decoding.rollouts = true contradicts method = {config.method}: the policy says nothing in its "
            "rollouts; leave it out, and decoding.kind counts where answers are measured"
        )


def _trains(method: Method) -> bool:
    # Whoever writes answers, or none, says so because it trains; and phases may lie in a world that is not built yet.
    return answers_a_prompt(method) is not None or bool(method.phases(0))
