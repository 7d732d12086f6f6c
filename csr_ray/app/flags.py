"""Errors of commands that take flags where a run takes a config: they call a key as the command line does."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from csr_ray.errors import ConfigError, JudgeGone


@contextlib.contextmanager
def named(flags: Mapping[str, str]) -> Iterator[None]:
    """In an error's words each key of a config is called as the command line calls it."""
    try:
        yield
    except (ConfigError, JudgeGone) as error:
        keys = "|".join(re.escape(key) for key in flags)
        # Whole keys only, and none that is a part of a path.
        said = re.sub(rf"(?<![\w./-])({keys})(?![\w/-]|\.\w)", lambda found: flags[found[0]], str(error))
        raise type(error)(said) from error
