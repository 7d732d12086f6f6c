"""The embedded world for benchmarks, from the cache, and built there first if it has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.world.build import cached_world


def default_world(*, is_quick: bool = False) -> Path:
    """Its folder: seed 0's, with all its images or, of models that are trained for seconds only, with few."""
    small: dict[str, Any] = {"quick": True, "num_train_images": 48, "num_heldout_images": 48} if is_quick else {}
    return cached_world(world_spec(World(enabled=True, **small)))
