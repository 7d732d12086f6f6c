"""The plan of every bulk command: what is left to do, each part written as it is done, and what was set aside.

It knows pieces of work by their positions and sizes; what is done with one, and by whom, is for the command to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from csr_ray.records import JsonDict, Rejection
from csr_ray.stages.view import View
from csr_ray.store.parts import PartFolder, Work
from csr_ray.store.quarantine import Quarantine

DoWork = Callable[[Sequence[Work[Any]]], Iterator[tuple[int, pa.Table]]]
"""Does pieces of work, and gives the position and the table of each as it is done."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a start of a bulk command came to.

    Attributes:
        positions: of all parts, in order.
        done_before: items that earlier starts have done.
        set_aside: rows without a result, which are in the quarantine.
        first_reason: why the first of these has none; empty if all have one.
    """

    positions: tuple[int, ...]
    done_before: int
    set_aside: int
    first_reason: str


def do_what_is_left(
    works: Sequence[Work[Any]],
    *,
    what: JsonDict,
    folder: PartFolder,
    quarantine: Path,
    do: DoWork,
    view: View,
    stage: str,
    unit: str,
    rejections: Callable[[], Iterator[Rejection]] = lambda: iter(()),
) -> Done:
    """Do the pieces that have no part in the folder yet, and write the quarantine.

    Args:
        what: says what is done and by what; a folder that says otherwise is refused.
        quarantine: the file that lists what has no result.
        stage, unit: what the work and its items are called on the screen.
        rejections: inputs that were set aside before there was any work.

    Raises:
        ConfigError: the folder holds something else.
    """
    folder.begin(what)
    num_of = {work.position: work.num for work in works}
    left = [work for work in works if not folder.is_done(work.position)]
    num_left = sum(work.num for work in left)
    if left:
        with view.stage(stage, total=num_left, unit=unit, round_index=None) as shown:
            for position, table in do(left):
                folder.write(position, table)
                shown.set(done=shown.done + num_of[position], total=num_left)
    first_reason = ""

    def set_aside() -> Iterator[Rejection]:
        nonlocal first_reason
        for item in chain(rejections(), folder.rejections(num_of)):
            first_reason = first_reason or item.reason
            yield item

    num_set_aside = Quarantine(quarantine).rewrite(set_aside())
    return Done(
        positions=tuple(num_of),
        done_before=sum(num_of.values()) - num_left,
        set_aside=num_set_aside,
        first_reason=first_reason,
    )
