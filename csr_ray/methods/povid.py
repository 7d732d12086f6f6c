"""POVID: a true answer against one with invented things, in words and by a noisy picture (Zhou et al. 2024).

Nothing is rolled out (arXiv 2402.11411). The prompt's truth is preferred to an edit of it with plausible
hallucinations, which comes from a file (`csr-ray edit-truths` lets a judge write it) or is made by a rule. A round
has two phases on the same pairs: in the first, ordinary DPO; in the second the trainer also shows the policy a noisy
copy of each picture, and what the policy would then have said at each place of the true answer is rejected, too
(`train.objective: dpo_noise`). docs/povid.md has the parameters and the deviations.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from csr_ray.config.schema import Config, Section
from csr_ray.data.json_lines import records_of
from csr_ray.data.parsing import is_unicode
from csr_ray.errors import ConfigError
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Example, Phase, Prompt, Rollout, RolloutStats
from csr_ray.rollout.served import sentences_of
from csr_ray.rollout.whole_answers import target_of

ABOUT: Final = About(
    title="truth against invented things, in words and by a noisy picture",
    source="Zhou et al. 2024",
    arxiv="2402.11411",
    needs=("truth",),
    rollouts="none",
    objective="DPO, the truth against an edit of it; then also against what a noisy picture would have it say",
)
NO_EDIT: Final = "no_edit_of_the_truth"
EQUAL: Final = "edit_equals_truth"

# The words stand for the two candidates of a rollout, the numbers for their places.
_TRUTH, _EDITED = "truth", "edited"
_WORLD: Final = "${world}"


class Keys(Section):
    """The section `povid` of a config."""

    edit: Literal["file", "rule"] = Field(
        "file",
        description="where the rejected answers come from. file: povid.rejected; rule: one of the things that the "
        "truth names becomes another of povid.objects, or that other thing is added, in a sentence like its own",
    )
    rejected: str | None = Field(
        None,
        description="edit = file: JSONL, or a JSON list, of rows with `id` (a prompt's) and `rejected` (its edited "
        "truth); POVID's own file of preferences is read as it is",
    )
    objects: tuple[str, ...] = Field(
        (), description="edit = rule: names of things, singular; plurals in -s count as well"
    )
    stages: Literal["both", "text", "noise"] = Field(
        "both",
        description="phases of a round. text: DPO on the edited answers; noise: the same pairs with the noisy "
        "picture's tokens as a second rejected answer; both: one after the other (paper)",
    )

    @model_validator(mode="after")
    def _edits_have_a_source(self) -> Keys:
        if self.edit == "file" and self.rejected is None:
            raise ValueError("rejected = null contradicts edit = file: name the file with the edited answers")
        if self.edit == "rule" and len(self.objects) < 2:
            raise ValueError(f"objects = {list(self.objects)} contradicts edit = rule: name the things there are")
        return self


def build(config: Config) -> Povid:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    edits: Mapping[str, str] = {}
    if keys.edit == "file" and keys.rejected is not None and _WORLD not in keys.rejected:
        path = keys.rejected
        edits = read_edits(path if "://" in path else os.path.abspath(os.path.expanduser(path)))
    return Povid(keys=keys, edits=edits, seed=config.run.seed)


@dataclass(frozen=True, kw_only=True)
class Povid:
    """See `csr_ray.methods.base.Method`.

    Attributes:
        edits: by a prompt's id, its edited truth, where they come from a file.
        seed: of the run. An edit by rule goes by it and the prompt's id alone, so both phases have the same pairs.
    """

    keys: Keys
    edits: Mapping[str, str] = field(repr=False)
    seed: int
    name: str = "povid"
    needs_scorer: bool = False

    @property
    def answers_a_prompt(self) -> float:
        return 0.0

    def phases(self, round_index: int) -> Sequence[Phase]:
        text = Phase(name="text", has_reference=False)
        noise = Phase(name="noise", objective="dpo_noise", has_reference=False)
        return {"both": (text, noise), "text": (text,), "noise": (noise,)}[self.keys.stages]

    def refuses(self, prompt: Prompt) -> str | None:
        if not prompt.truth or not prompt.truth.strip():
            return "truth is missing; povid prefers it to an edit of it"
        if self.keys.edit == "file" and prompt.id not in self.edits:
            return "povid.rejected has no edit of its truth"
        return None

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """The truth and its edit, in the tokens in which the policy would give them; it says nothing itself."""
        started_s = time.perf_counter()
        truth = str(prompt.truth).strip()
        said = {_TRUTH: truth, _EDITED: self._edit(prompt.id, truth=truth)}
        candidates = tuple(
            Candidate(
                node=node,
                text=text,
                token_ids=engine.answer_ids(text),
                logp=None,
                role=role,
                reward=float(role == _TRUTH),
            )
            for node, (role, text) in enumerate(said.items())
            if text is not None
        )
        stats = RolloutStats(seconds=time.perf_counter() - started_s)
        return Rollout(prompt=prompt, candidates=candidates, policy_version=policy_version, seed=seed, stats=stats)

    def _edit(self, prompt_id: str, *, truth: str) -> str | None:
        if self.keys.edit == "file":
            return self.edits.get(prompt_id)
        return with_an_invented_thing(truth, objects=self.keys.objects, seed=f"{self.seed}/{prompt_id}")

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """The truth against its edit, the same pair in both phases."""
        if len(rollout.candidates) < 2:
            return Dropped(NO_EDIT)
        truth, edited = rollout.candidates
        if truth.token_ids == edited.token_ids:
            return Dropped(EQUAL)
        example = Example(
            id=rollout.prompt.id,
            ask=rollout.prompt.ask,
            targets=(target_of(truth, role="chosen"), target_of(edited, role="rejected")),
            policy_version=rollout.policy_version,
            method=self.name,
            seed=rollout.seed,
        )
        return (example,)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        """How often there was an edit, and how often it is shorter than the truth: DPO may learn length from it."""
        rates = {"edited": (int(len(rollout.candidates) == 2), 1)}
        if len(rollout.candidates) == 2:
            truth, edited = rollout.candidates
            rates["edit_shorter"] = (int(len(edited.token_ids) < len(truth.token_ids)), 1)
            rates["edit_longer"] = (int(len(edited.token_ids) > len(truth.token_ids)), 1)
        return rates


def with_an_invented_thing(text: str, *, objects: Sequence[str], seed: str) -> str | None:
    """The text with one thing more, or another, than it names; None where it names nothing, or everything.

    A mention is drawn, and something that the text does not name. Then the one takes the place of the other, or, as
    often, the sentence of the mention is said once more at the end, with the other thing in it. Articles go with it.
    """
    rng = random.Random(seed)
    pattern = re.compile(rf"\b(?:(an?) )?({'|'.join(map(re.escape, objects))})((?:e?s)?)\b", re.IGNORECASE)
    named = {mention[2].lower() for mention in pattern.finditer(text)}
    absent = [name for name in objects if name.lower() not in named]
    if not named or not absent:
        return None
    invented = rng.choice(absent)
    replaces = rng.random() < 0.5
    naming = [text] if replaces else [said for said in sentences_of(text) if pattern.search(said)]
    said = rng.choice(naming)
    mention = rng.choice(list(pattern.finditer(said)))
    changed = said[: mention.start()] + _as_mentioned(invented, mention=mention) + said[mention.end() :]
    return changed if replaces else f"{text} {changed}"


def read_edits(path: str) -> dict[str, str]:
    """The edited answers of a file by the prompt's id; rows without an id or a text are passed over.

    A row has `rejected`, or as in POVID's own file `rejected_conversations`, whose last turn is the answer.

    Raises:
        ConfigError: the file cannot be read, or has no edited answer.
    """
    edits: dict[str, str] = {}
    for row in records_of(path, key="povid.rejected"):
        if edited := _edited_of(row):
            edits.setdefault(row["id"], edited)
    if not edits:
        raise ConfigError(f"povid.rejected = {path!r}: no row has an `id` and a text `rejected`; look at its keys")
    return edits


def _edited_of(row: Mapping[str, Any]) -> str:
    edited = row.get("rejected")
    turns = row.get("rejected_conversations")
    if edited is None and isinstance(turns, list) and turns and isinstance(turns[-1], dict):
        edited = turns[-1].get("value")
    return edited.strip() if isinstance(edited, str) and is_unicode(edited) else ""


def _as_mentioned(name: str, *, mention: re.Match[str]) -> str:
    """Another thing in the place of a mention: with an article if that has one, capitals and plural as there."""
    article, said, ending = mention.groups()
    plural = "" if not ending else "es" if name.lower().endswith(("s", "x", "z", "ch", "sh")) else "s"
    if article is None:
        name = name.capitalize() if said[0].isupper() else name
        return name + plural
    fitting = "an" if name[0].lower() in "aeiou" else "a"
    return f"{fitting.capitalize() if article[0].isupper() else fitting} {name}{plural}"
