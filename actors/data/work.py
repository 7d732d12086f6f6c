"""Lists of work as Ray data sets, and their results back."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import ray.cloudpickle
import ray.exceptions

from csr_ray.errors import ActorFailure, UserError


def dataset_of(work: Sequence[Any]) -> Any:
    """One row for each item, in the column `work`, to be unpacked by `ray.cloudpickle`; one block for each row."""
    from ray.data import from_items

    rows = [{"work": ray.cloudpickle.dumps(item)} for item in work]
    return from_items(rows, override_num_blocks=max(1, len(rows)))


def tables(dataset: Any) -> Generator[pa.Table, None, None]:
    """What a data set holds, block by block; an error that the user can mend is raised as it was.

    Raises:
        ActorFailure: something else went wrong in a task or in an actor.
    """
    batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with closing(batches):
        try:
            yield from batches
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError):
                raise cause from None
            said = [line for line in str(cause or error).splitlines() if line.strip()]
            raise ActorFailure(f"Ray Data: {' '.join(said[-1:])[:500] or type(error).__name__}") from error
