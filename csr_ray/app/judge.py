"""The judge that `csr-ray eval` and `score-answers` are told of by flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from csr_ray.config.load import parse_judge
from csr_ray.config.schema import Judge
from csr_ray.errors import ConfigError
from csr_ray.judging.session import JudgeSession

_OWN_FLAGS = {"url": "--judge-url", "model": "--judge-model", "key_env": "--judge-key-env"}
JUDGE_FLAGS = {f"judge.{key}": _OWN_FLAGS.get(key, f"--judge {key}") for key in Judge.model_fields}


def replies_file(output: Path) -> Path:
    """Where a judge's answers are kept beside the result of a command that has no folder of its own."""
    return output.with_name(f"{output.stem}.judge.jsonl")


@dataclass(frozen=True, kw_only=True)
class JudgeFlags:
    """What the command line says of a judge.

    Attributes:
        settings: further keys of the judge, each as key=value.
    """

    url: str | None = None
    model: str | None = None
    key_env: str | None = None
    prompt: Path | None = None
    settings: Sequence[str] = ()

    def session(self, replies: Path, *, on_done: Callable[[], None] = lambda: None) -> JudgeSession | None:
        """The judge; None where there is no word of one.

        Args:
            replies: the file that keeps its answers.

        Raises:
            ConfigError: the judge cannot be asked, or a part of it is missing.
        """
        given = {key: value for key, value in (("url", self.url), ("model", self.model)) if value is not None}
        if not given:
            if self.key_env is not None or self.prompt is not None or self.settings:
                raise ConfigError(
                    "--judge-url: missing; name the judge's endpoint and --judge-model, or no judge at all"
                )
            return None
        for key in ("url", "model"):
            if key not in given:
                raise ConfigError(f"{_OWN_FLAGS[key]}: missing; a judge is an endpoint and a model of it")
        keys = parse_judge({**given, "key_env": self.key_env}, settings=self.settings)
        return JudgeSession(keys, replies=replies, prompt=self.prompt, on_done=on_done)
