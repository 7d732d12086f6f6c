"""What a judge is told: a text with places for the question, the answer and so on, ours or the user's own file.

A place is a known name in braces; all other braces are words. What is put in is not looked through for places again,
so an answer that holds one changes nothing. What stands before a line `[[user]]` is said as the system.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from csr_ray.errors import ConfigError
from csr_ray.records import Message

OWN = "own"
_DIVIDER = re.compile(r"^\[\[user\]\][ \t]*\n", re.MULTILINE)


@dataclass(frozen=True)
class Template:
    """A judge's prompt.

    Attributes:
        name: "own", or the path of the user's file; goes into every result.
        text: with its places.
        places: the names that are filled in.
    """

    name: str
    text: str
    places: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the text: a file may change under its name, and so may ours with the version."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def messages(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        """The messages with every place filled in."""
        parts = _DIVIDER.split(self.text, maxsplit=1)
        known = re.compile("{(" + "|".join(map(re.escape, self.places)) + ")}")
        texts = [known.sub(lambda found: values[found[1]], part).strip() for part in parts]
        if len(texts) == 1:
            return (Message("user", texts[0]),)
        return Message("system", texts[0]), Message("user", texts[1])


def load_template(path: Path | None, *, own: Path, needs: Sequence[str], knows: Sequence[str] = ()) -> Template:
    """The user's own prompt, or ours.

    Args:
        path: the user's file; None: ours.
        own: our file.
        needs: the places that a prompt has to have; `knows` are those that it may have besides.

    Raises:
        ConfigError: the file cannot be read, or lacks a place.
    """
    places = (*needs, *knows)
    if path is None:
        return Template(OWN, own.read_text(encoding="utf-8"), places)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--judge-prompt {path}: cannot be read: {reason}") from error
    if lacking := [name for name in needs if "{" + name + "}" not in text]:
        raise ConfigError(
            f"--judge-prompt {path}: it has no {{{lacking[0]}}}; put {', '.join('{' + name + '}' for name in needs)} "
            "where the judge is to read them"
        )
    return Template(str(path), text, places)
