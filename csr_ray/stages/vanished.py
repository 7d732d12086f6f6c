"""Tells broken pictures from a storage that has gone: a mount that vanishes makes every picture unreadable at once.

Broken pictures are set aside for good, so before many of them in a row are, the last picture that could be read is
read once more. If it cannot be read any more either, it is not the pictures' fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from csr_ray.errors import StorageError
from csr_ray.records import Rejection, Rollout

# So many prompts in a row that are set aside by their own fault make one look.
_MANY = 16


class PicturesGone(StorageError):
    """Pictures that could be read before cannot be any more; the message names the last one that could."""


def sift(
    results: Iterable[Rollout | Rejection], *, unreadable: Callable[[str], Exception | None]
) -> Iterator[Rollout | Rejection]:
    """Hand the results on, those of unreadable pictures only once it is sure that others can be read.

    Args:
        unreadable: why a picture cannot be read, or None.

    Raises:
        PicturesGone: what is held back then is not handed on at all.
    """
    held: list[Rejection] = []
    last_read = ""
    for result in results:
        if isinstance(result, Rejection) and result.fault == "input":
            held.append(result)
            if len(held) < _MANY:
                continue
            _look(last_read, unreadable)
        else:
            last_read = result.prompt.image if isinstance(result, Rollout) else last_read
        yield from held
        held.clear()
        if not (isinstance(result, Rejection) and result.fault == "input"):
            yield result
    if held:
        _look(last_read, unreadable)
        yield from held


def _look(picture: str, unreadable: Callable[[str], Exception | None]) -> None:
    if picture and (reason := unreadable(picture)) is not None:
        raise PicturesGone(
            f"pictures cannot be read any more, as {picture}, which could be read a moment ago: {reason}. Nothing is "
            "set aside for that; see that their file system is there, then start the same command again: it goes on "
            "where it was"
        )
