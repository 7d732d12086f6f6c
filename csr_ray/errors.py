"""The errors that reach a person, each with the exit code it ends the program with.

A `UserError` is printed without a traceback, as one line, or as one paragraph where an actor's last words belong to
it. Everything else is a fault of ours or of the cluster.
"""

from __future__ import annotations

import os
from typing import Literal

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_CONFIG = 2
EXIT_NO_DATA = 3


class UserError(ValueError):
    """Something only the user can mend; the message names the key or file, its value and the remedy."""

    exit_code = EXIT_FAILED


class ConfigError(UserError):
    """A key, value or path of the config that cannot be used."""

    exit_code = EXIT_BAD_CONFIG


class NoDataError(UserError):
    """Nothing usable is left of the data; the message says where the quarantine is."""

    exit_code = EXIT_NO_DATA


class StorageError(UserError):
    """The run folder cannot take a write (disk full, no permission)."""


_SEE_TO_PICTURES = (
    "Nothing is set aside for that; see that their file system is there, then start the same command again: it goes "
    "on where it was"
)


class PicturesGone(StorageError):
    """Pictures that could be read before cannot be any more; the message names the last one that could."""

    @classmethod
    def since(cls, last_read: str, *, reason: object) -> PicturesGone:
        return cls(
            f"pictures cannot be read any more, as {last_read}, which was read a moment ago: {reason}. "
            f"{_SEE_TO_PICTURES}"
        )

    @classmethod
    def all_of_them(cls, *, reason: object) -> PicturesGone:
        """Not one can be read, though some could when the run was at work before."""
        return cls(f"no picture can be read any more: {reason}. {_SEE_TO_PICTURES}")


class LockLost(UserError):
    """Another process has taken over this run while this one was held up; the message names it."""


class RunFailed(UserError):
    """A run ended by an error that is not the user's; the message is a paragraph that says how to go on."""


class DamageError(UserError):
    """A file of the run folder is not what was written, and nobody but the user can say what is to become of it."""


class ReferenceGapError(UserError):
    """The engine's log-probs are not the trainer's reference; the message names the pair, the gap and the key."""


class ActorFailure(RuntimeError):
    """An actor died or answered wrongly. The message names the actor and, if known, its log file."""


class EngineFailure(ActorFailure):
    """A generator's engine died, so the generator is of no more use; its process lives."""


class ScorerFailure(ActorFailure):
    """A scorer died while a generator waited for its scores, and no other took its place in time.

    `index` is the scorer's number, and `life` counts how many held that number before it. `is_suspect`: several died
    one after the other while they were asked the same, so that it may be what was asked that kills them.
    """

    def __init__(self, index: int, life: int, reason: str, is_suspect: bool = False) -> None:
        super().__init__(index, life, reason, is_suspect)  # to survive the way from the generator's process
        self.index = index
        self.life = life
        self.reason = reason
        self.is_suspect = is_suspect

    def __str__(self) -> str:
        return f"scorer {self.index} died: {self.reason}"


JudgeFailureKind = Literal["timed_out", "busy", "failed", "garbled", "refused", "unreachable"]


class JudgeFailure(RuntimeError):
    """A judge did not answer one question, however often it was asked; it may when it is asked another day.

    `kind` says what came in place of an answer: nothing in time, that it has too much to do (429), that it failed
    (5xx), something that is no answer, that it does not want to (any other status), or not even a connection.
    """

    def __init__(self, said: str, *, kind: JudgeFailureKind) -> None:
        super().__init__(said)
        self.kind: JudgeFailureKind = kind


class DoesNotFit(ValueError):
    """A question or an answer has more tokens than the policy's context (`policy.max_model_len`) has room for."""


class JudgeGone(UserError):
    """A judge has stopped answering, or took too long; the message says how to go on."""


class TransferError(RuntimeError):
    """An adapter did not arrive as it was sent; the message names the version and the chunk."""


class StalePolicyError(RuntimeError):
    """An answer or a pair is of another policy version than the round's; it must not be used."""


def shows_tracebacks() -> bool:
    """Whether errors should reach the screen as they are; `CSR_RAY_DEBUG=1` asks for that."""
    return os.environ.get("CSR_RAY_DEBUG", "0") not in ("", "0")
