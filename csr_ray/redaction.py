"""Finds credentials in URLs, so that none is written where others read: run folders, logs, the screen.

Knows the forms in which passwords, keys, tokens and signatures stand in URLs; knows no secret and no environment.
Takes time that grows with the text and no faster, for texts come from prompt files.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

_SCHEME: Final = re.compile(r"(?i)((?<![a-z])(?:abfss?|wasbs?)|s3[an]?)?://")
_HOST_END: Final = re.compile(r"[/?#\s]|$")
_KEY_PAIR: Final = re.compile(r"[^/:@\s]*:")
_KEY_END: Final = re.compile(r"[@\s]|$")

_PARAMETER: Final = re.compile(r"(?<=[?&;#])([^?&;#=\s]+)=(?=[^&#\s])")
_VALUE_END: Final = re.compile(r"[&#\s]|$")
_NO_WORD: Final = re.compile(r"[^a-zA-Z0-9]+")
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# With the words that are written before them as one: apikey, accesstoken.
_SECRET_WORD: Final = re.compile(
    r"(?:access|account|api|app|auth|aws|bearer|client|hf|id|oauth|private|refresh|secret|session|shared|user)*"
    r"(?:token|key|secret|password|passwd|pwd|sig|signature|credentials?|authorization|jwt)"
)
_SECRET_NAMES: Final = ("auth", "pass")
_SECRET_ID: Final = "accesskeyid"
_SIGNED_URL: Final = ("x-amz-", "x-goog-")
_NO_SECRET: Final = ("cachekey", "sortkey")
_HIDDEN: Final = "***"


def has_credentials(text: str) -> bool:
    """Whether a URL in the text has a user part, or a parameter that bears the name of a secret.

    Example:
        >>> has_credentials("s3://bucket/a.png"), has_credentials("https://me:pw@host/a.png")
        (False, True)
    """
    return "://" in text and without_credentials(text) != text


def without_credentials(text: str) -> str:
    """The text, with three stars for whatever in its URLs is, or may be, a secret.

    Example:
        >>> without_credentials("https://me:pw@host/a.png?size=3&sig=abc")
        'https://***@host/a.png?size=3&sig=***'
    """
    if "://" not in text:
        return text
    return _without_values(_without_users(text))


def without_secret(text: str, secret: str | None) -> str:
    """The text, with three stars for a secret that is known, as where a library repeats what it was given.

    Also for the beginning of it, which endpoints like to show of a key that they refuse.

    Example:
        >>> without_secret("Incorrect API key provided: sk-abcdef. ...", "sk-abcdef")
        'Incorrect API key provided: ***. ...'
    """
    if not secret:
        return text
    text = text.replace(secret, _HIDDEN)
    return text.replace(secret[:8], _HIDDEN) if len(secret) >= 12 else text


def _without_users(text: str) -> str:
    """Hides user:password@, and the lone key of https://TOKEN@host. Azure's container@account is no secret."""
    shown: list[str] = []
    done = key_end = 0
    for match in _SCHEME.finditer(text):
        scheme, start = (match[1] or "").lower(), match.end()
        if start < done or scheme.startswith(("abfs", "wasb")):
            continue
        at = start
        # A key of Amazon's may hold a slash, and a bucket's name no colon.
        pair = _KEY_PAIR.match(text, start) if scheme else None
        if pair is not None:
            if key_end < pair.end():
                key_end = _end(_KEY_END, text, pair.end())
            if text.startswith("@", key_end) and key_end > pair.end():
                at = key_end
        at = text.rfind("@", at, _end(_HOST_END, text, at))
        if at > start:
            shown += (text[done:start], _HIDDEN)
            done = at
    return "".join((*shown, text[done:]))


def _without_values(text: str) -> str:
    """Hides the values of parameters, in queries and in fragments."""
    shown: list[str] = []
    done = 0
    for match in _PARAMETER.finditer(text):
        if match.start() >= done and _names_a_secret(unquote(match[1])):
            shown += (text[done : match.end()], _HIDDEN)
            done = _end(_VALUE_END, text, match.end())
    return "".join((*shown, text[done:]))


def _names_a_secret(name: str) -> bool:
    words = [word for word in _NO_WORD.split(name) if word]
    if not words:
        return False
    whole = "".join(words).lower()
    if whole.endswith(_NO_SECRET):
        return False
    if whole in _SECRET_NAMES or whole.endswith(_SECRET_ID) or name.lower().startswith(_SIGNED_URL):
        return True
    last = words[-1]
    return any(_SECRET_WORD.fullmatch(word.lower()) for word in (last, _HUMP.split(last)[-1]))


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.search(text, start)
    assert found is not None  # every one of these patterns also ends with the text
    return found.start()
