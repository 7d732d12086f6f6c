"""Makes the local paths of a config mean the same in every process that they are handed to.

Actors work in whatever folder their node was started in, so to them a relative path is another file, or none. So the
driver makes the paths of its own working folder absolute, once, before anything is handed on; the run folder keeps
what the user gave. Hub ids, URLs and names of open_clip's list are no paths and stay as they are, and so does
`policy.model`, which travels as a reference of its own (`csr_ray.policy.source`).

In the working folder of a job (`ray job submit --working-dir`) it is the other way round: every node has a copy of
it, at a path of its own and under a name that changes with the next upload, and all actors work in their node's copy.
There a relative path is right on every node, and only a relative path stays true.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from csr_ray.app.job import works_in_a_copy
from csr_ray.config.schema import Config, Data, Scorer
from csr_ray.data.files import TAR, WEB, scheme_of
from csr_ray.data.prompts import PromptFile
from csr_ray.data.sources import stamp_of
from csr_ray.data.tars import archive_of
from csr_ray.policy.clip_source import with_paths
from csr_ray.store.digests import Digest
from csr_ray.store.objects import local_path

_FEW_PROMPTS = 20
# So many tars are compared on every node before a run, in some seconds where each look goes over a network.
_MOST_ARCHIVES = 1000


def placed(config: Config) -> Config:
    """The config with `data.prompts`, `data.images`, `scorer.model` and `eval.data` as actors can use them."""
    benchmarks = config.eval.data
    changes = {
        "data": placed_data(config.data),
        "scorer": None if config.scorer is None else placed_scorer(config.scorer),
        "eval": config.eval.model_copy(update={"data": benchmarks and placed_path(benchmarks)}),
    }
    return config.model_copy(update=changes)


def placed_data(data: Data) -> Data:
    """The section with `prompts` and `images` as actors can use them."""
    images = data.images
    return data.model_copy(
        update={"prompts": placed_path(data.prompts), "images": images and placed_path(images)},
    )


def placed_scorer(scorer: Scorer) -> Scorer:
    """The section with a `model` that actors can use."""
    return scorer.model_copy(update={"model": with_paths(scorer.model, of=placed_path)})


def placed_path(name: str) -> str:
    """A path as actors can use it; a URL as it is.

    The home folder is the driver's, also where an actor's user has another one.
    """
    if "://" in name:
        return name
    path = Path(os.path.expanduser(name))
    return os.path.normpath(path) if is_in_a_copy(name) else str(path.absolute())


def is_in_a_copy(name: str) -> bool:
    """Whether a path, not a URL, leads into the working folder of a job, of which every upload is another copy."""
    path = os.path.normpath(os.path.expanduser(name))
    return works_in_a_copy() and not os.path.isabs(path) and path.split(os.sep)[0] != ".."


def stamp_anywhere(name: str) -> tuple[int, str] | None:
    """`csr_ray.data.sources.stamp_of`, and of a file in a job's copy what tells its content from any other.

    The times of such files are those of the moment when Ray unpacked them.
    """
    if "://" in name or not is_in_a_copy(name):
        return stamp_of(name)
    try:
        digest = Digest.of_file(Path(name))
    except OSError:  # whoever opens it says what is wrong
        return None
    return digest.num_bytes, digest.xxh3


def pictures_on_disk(prompts: PromptFile) -> tuple[str, list[str]]:
    """What of the pictures lies on a disk here, so that another node may lack it, or in a store that it may not read.

    Returns:
        The first picture of the first few prompts that is a file, else the first in a store, "" if none is; and the
        paths of tars that are prompt files or that the first few prompts name, at most a thousand.
    """
    few = [prompt.image for prompt in prompts.take(num=min(prompts.num, _FEW_PROMPTS))]
    named = [*prompts.archives(), *(archive_of(image) for image in few if scheme_of(image) == TAR)]
    paths = dict.fromkeys(str(local_path(name)) for name in named if scheme_of(name) in ("", "file"))
    return picture_for_nodes(few), [path for path in paths if os.path.isfile(path)][:_MOST_ARCHIVES]


def picture_for_nodes(images: Sequence[str]) -> str:
    """Of the first few images the first that is a file here, else the first in a store; "" if there is none.

    Another node may lack a file, and may not be allowed to read a store. A member of a tar on a disk is neither.
    """
    few = images[:_FEW_PROMPTS]
    files = (image for image in few if os.path.isfile(image))
    places = ((image, archive_of(image) if scheme_of(image) == TAR else image) for image in few)
    stored = (image for image, place in places if scheme_of(place) not in ("", "file", *WEB))
    return next(files, next(stored, ""))
