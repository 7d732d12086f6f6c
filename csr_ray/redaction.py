"""Finds credentials in URLs, so that none is written where others read: run folders, logs, the screen.

Knows the forms in which passwords, keys, tokens and signatures stand in URLs; knows no secret and no environment.
"""

from __future__ import annotations

import re
from typing import Final

# user:password@, and the lone key of https://TOKEN@host. Azure's container@account is no secret.
_USER: Final = re.compile(r"(?i)(?<![a-z])((?!abfss?:|wasbs?:)[a-z][a-z0-9+.:-]*://)[^/?#\s]+(?=@)")
_WORDS: Final = (
    "token", "access[_-]?token", "auth", "authorization", "api[_-]?key", "key", "secret", "client[_-]?secret", "pass",
    "password", "passwd", "pwd", "sig", "signature", "credential", "session[_-]?token", "x-amz-[a-z-]+",
    "x-goog-[a-z-]+", "awsaccesskeyid",
)  # fmt: skip
# A key of Amazon's may hold a slash, and a bucket's name no colon.
_S3_USER: Final = re.compile(r"(?i)(s3[an]?://)[^/@\s]+:[^\s@]+(?=@)")
_QUERY: Final = re.compile(rf"(?i)(?<=[?&;])((?:{'|'.join(_WORDS)})=)[^&;#\s]+")
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
    for pattern in (_S3_USER, _USER, _QUERY):
        text = pattern.sub(rf"\g<1>{_HIDDEN}", text)
    return text
