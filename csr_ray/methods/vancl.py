"""VANCL's idea: two views of one picture, plain and painted, that are kept consistent (Wang et al. 2023).

The paper (arXiv 2310.14785) reads entities off documents. In training each page is shown twice, plain and with the
regions of its entities painted by their type, and the plain flow is held to the painted one, which is dropped at
inference. Here the policy imitates the reference answer with both views of a picture, and its next-token distribution
with the plain view is drawn to the one with the painted view (`train.objective: two_views`). docs/vancl.md has the
parameters, the deviations and the measured result.
"""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pydantic import Field

from csr_ray.config.schema import Config, Section
from csr_ray.data.json_lines import records_of
from csr_ray.errors import ConfigError
from csr_ray.methods.base import About, Dropped
from csr_ray.methods.sft import truth_example, truth_rollout
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Example, Phase, Prompt, Rollout

ABOUT: Final = About(
    title="the plain picture is to be read as one with painted regions",
    source="Wang et al. 2023",
    arxiv="2310.14785",
    needs=("truth",),
    rollouts="none",
    objective="SFT on the truth with both views, and KL(painted || plain)",
)
NO_REGIONS: Final = "no_regions_any_more"

_WORLD: Final = "${world}"


class Keys(Section):
    """The section `vancl` of a config."""

    regions: str | None = Field(
        None,
        description="JSONL, or a JSON list, of rows with `id` (a prompt's) and `regions`, a list of objects with "
        "`box` ([left, top, right, bottom], in pixels) and `label`; null: the rows of data.prompts have them",
    )


class Region(NamedTuple):
    """A box in a picture, in pixels, and what kind of thing is in it."""

    left: float
    top: float
    right: float
    bottom: float
    label: str


def build(config: Config) -> Vancl:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    key = "data.prompts" if keys.regions is None else "vancl.regions"
    path = config.data.prompts if keys.regions is None else keys.regions
    if "://" not in path:
        path = os.path.abspath(os.path.expanduser(path))
    if _WORLD not in path:  # which may not be built yet
        read_paint(path, key=key)
    return Vancl(path=path, key=key)


@dataclass(frozen=True, kw_only=True)
class Vancl:
    """See `csr_ray.methods.base.Method`.

    Attributes:
        path, key: the file with the regions, which is read when it is first needed, and the key that names it.
    """

    path: str
    key: str
    name: str = "vancl"
    needs_scorer: bool = False

    @property
    def answers_a_prompt(self) -> float:
        return 0.0

    def phases(self, round_index: int) -> Sequence[Phase]:
        return (Phase(objective="two_views", num_answers=1),)

    def refuses(self, prompt: Prompt) -> str | None:
        if not prompt.truth or not prompt.truth.strip():
            return "truth is missing; vancl imitates it with both views of the picture"
        has_regions = prompt.id in read_paint(self.path, key=self.key)
        return None if has_regions else "regions are missing or unusable; vancl paints them"

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        return truth_rollout(prompt, engine=engine, policy_version=policy_version, seed=seed)

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """The truth with both views; of a prompt whose regions have been taken out of the file since, nothing."""
        view = read_paint(self.path, key=self.key).get(rollout.prompt.id)
        if view is None:
            return Dropped(NO_REGIONS)
        return (replace(truth_example(rollout, method=self.name), view=view),)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        return {}


@lru_cache(maxsize=2)
def read_paint(path: str, *, key: str) -> dict[str, str]:
    """How to paint the picture of each prompt, by its id; rows without usable regions are passed over.

    Every label has a colour of its own: the hues of all labels of the file, in alphabetical order, are evenly spaced.

    Args:
        key: of the config, that names the file.

    Raises:
        ConfigError: the file cannot be read, is no JSON, or has no regions at all.
    """
    regions = {row["id"]: found for row in records_of(path, key=key) if (found := regions_of(row.get("regions")))}
    if not regions:
        raise ConfigError(
            f"{key} = {path!r}: no row has an `id` and `regions`, a list of objects with `box` ([left, top, right, "
            f"bottom], in pixels) and `label`; vancl paints them, so name a JSONL file that has them in vancl.regions"
        )
    labels = sorted({region.label for found in regions.values() for region in found})
    colours = dict(zip(labels, _colours(len(labels)), strict=True))

    def painted(region: Region) -> str:
        return ",".join([*map(_number, region[:4]), colours[region.label]])

    return {identity: "paint:" + ";".join(map(painted, found)) for identity, found in regions.items()}


def regions_of(value: Any) -> list[Region]:
    """The usable regions of a row: those with a label, and a box that has an area; empty if it has none."""
    found = []
    for item in value if isinstance(value, list) else ():
        box, label = (item.get("box"), item.get("label")) if isinstance(item, dict) else (None, None)
        if not isinstance(label, str) or not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            continue
        left, top, right, bottom = box
        if left < right and top < bottom:
            found.append(Region(left, top, right, bottom, label))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _colours(num: int) -> Iterator[str]:
    """So many colours as RRGGBB, fully saturated."""
    for index in range(num):
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(index / num, 1.0, 1.0))
        yield f"{red:02x}{green:02x}{blue:02x}"


def _number(value: float) -> str:
    return f"{value:.10g}"
