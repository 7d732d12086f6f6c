"""Lists of work as Ray data sets, and what tasks and actors make of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

import pyarrow as pa
import ray.cloudpickle
import ray.exceptions

from csr_ray.errors import ActorFailure, UserError

# Every table that comes back has this column: Ray Data would add its own advice to the words of an error.
ERROR: Final = pa.field("error", pa.binary())
# Ray's own words are coloured, also where nobody watches.
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def dataset_of(work: Sequence[Any]) -> Any:
    """One row for each item, in the column `work`; and one block, and so one task, for each row."""
    from ray.data import from_items

    rows = [{"work": ray.cloudpickle.dumps(item)} for item in work]
    return from_items(rows, override_num_blocks=max(1, len(rows)))


def done(batch: dict[str, Any], *, do: Callable[[Any], Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """In a task: what `do` makes of each item of `dataset_of`, up to the first error that the user can mend."""
    try:
        for packed in batch["work"]:
            for table in do(ray.cloudpickle.loads(packed)):
                yield table.append_column(ERROR, pa.nulls(table.num_rows, ERROR.type))
    except UserError as error:
        yield pa.table([[ray.cloudpickle.dumps(error)]], schema=pa.schema([ERROR]))


def tables(dataset: Any) -> Generator[pa.Table, None, None]:
    """What a data set holds, block by block.

    Raises:
        UserError: as it was raised in a task.
        ActorFailure: something else went wrong in a task or in an actor.
    """
    batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with closing(batches):
        try:
            for table in batches:
                if not table.num_rows:
                    continue
                for packed in table[ERROR.name].drop_null().to_pylist():
                    raise ray.cloudpickle.loads(packed)
                yield table.drop_columns([ERROR.name])
        except ray.exceptions.RayError as error:
            raise ActorFailure(_in_words(error)) from error


def is_death(failure: ActorFailure) -> bool:
    """Whether a failure that `tables` has raised is an actor's death at its work, and not one while it was made."""
    error = failure.__cause__
    causes = (error, getattr(error, "cause", None))
    is_actors = any(isinstance(cause, ray.exceptions.RayActorError) for cause in causes)
    return is_actors and "creation task" not in str(error)


def _in_words(error: ray.exceptions.RayError) -> str:
    """What a person should read of an error of Ray's: our own words, if it is one of ours, else its first line."""
    text = _COLOUR.sub("", str(getattr(error, "cause", None) or error))
    name = f"{ActorFailure.__module__}.{ActorFailure.__name__}: "
    if name in text:  # an actor that could not be made; a traceback comes before
        return text.rpartition(name)[2].strip()
    said = [line for line in text.splitlines() if line.strip()]
    return f"Ray Data: {' '.join(said[:1])[:500] or type(error).__name__}"
