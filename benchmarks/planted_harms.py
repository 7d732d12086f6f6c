"""The faults that `bench_gate.py` plants, each as a person could have it: keys, a method of their own, a scorer.

A method of one's own is one more file in `csr_ray/methods/` (docs/methods.md). So that no benchmark's file lies in
the product, a planted one is put into a copy of the program, which is then what runs.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import planted_scorer

from csr_ray.training.dose import rule_learning_rate

_ROOT = Path(__file__).resolve().parents[1]
_TIMES_TOO_HIGH = 50
_LORA_ALPHA = 32  # the default of train.lora_alpha


@dataclass(frozen=True, kw_only=True)
class Harm:
    """One planted fault.

    Attributes:
        what: in a few words, for the table.
        keys: `key.sub=value` of the config. `{rate}` stands for the learning rate that is too high.
        method: file of `benchmarks/planted_methods/` without its ending; "": the method is the config's own.
        long_texts: the scorer is one that prefers longer texts.
    """

    what: str
    keys: tuple[str, ...] = ()
    method: str = ""
    long_texts: bool = False


HARMS = {
    "rate_epochs": Harm(
        what=f"learning rate {_TIMES_TOO_HIGH} times too high, one epoch",
        keys=("train.learning_rate={rate}", "train.dose=epochs", "train.epochs=1"),
    ),
    "rate_auto": Harm(
        what=f"learning rate {_TIMES_TOO_HIGH} times too high, dose = auto", keys=("train.learning_rate={rate}",)
    ),
    "long_texts": Harm(what="scorer that prefers longer texts", long_texts=True),
    "longest": Harm(what="judge that prefers the longest answer", method="planted_longest"),
    "longest_epochs": Harm(
        what="the same, three epochs",
        method="planted_longest",
        keys=("train.dose=epochs", "train.epochs=3"),
    ),
    "shuffled": Harm(
        what="half of the pairs exchanged", method="planted_exchanged", keys=("planted_exchanged.share=0.5",)
    ),
    "exchanged": Harm(what="all pairs exchanged", method="planted_exchanged"),
    "raw_sum": Harm(what="the paper's raw sum", keys=("reward.aggregate=sum", "train.nll_weight=0")),
}


def keys_of(harm: Harm, *, world: Path, scorer: Path) -> list[str]:
    """The `key.sub=value` that plant it into a run on this world.

    Args:
        scorer: where the changed scorer is, or is made, if it needs one.
    """
    keys = [key.format(rate=too_high_rate(world)) for key in harm.keys]
    if harm.method:
        keys.append(f"method={harm.method}")
    if harm.long_texts:
        planted_scorer.plant_long_texts(world, directory=scorer)
        keys.append(f"scorer.model={scorer}")
    return keys


def too_high_rate(world: Path) -> float:
    """The harmful learning rate for the world's policy: so many times the one of the rule."""
    config = json.loads((world / "policy/config.json").read_text(encoding="utf-8"))
    num_layers = config["text_config"]["num_hidden_layers"]
    return _TIMES_TOO_HIGH * rule_learning_rate(lora_alpha=_LORA_ALPHA, num_layers=num_layers)


def planted_program(directory: Path) -> Path:
    """A copy of the program with the planted methods in it; returns the folder to import it from."""
    for package in ("csr_ray", "actors"):
        target = directory / package
        shutil.copytree(_ROOT / package, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for file in (_ROOT / "benchmarks/planted_methods").glob("planted_*.py"):
        shutil.copy(file, directory / "csr_ray/methods")
    return directory
