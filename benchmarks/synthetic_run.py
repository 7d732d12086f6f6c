"""Run folders of any size as a run leaves them, or as it is in the middle of one, with made-up answers.

Everything is written by the package's own writers: config, journal with checksums, candidates, examples, pairs,
summary. So whoever reads such a folder reads what a run writes; only the words, scores and pictures mean nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from csr_ray.config.load import parse_config, to_plain
from csr_ray.config.schema import Config
from csr_ray.counters import Counters
from csr_ray.methods.base import Dropped
from csr_ray.methods.csr import Csr
from csr_ray.records import Candidate, Cycle, Mark, MarkedAnswer, Phase, Prompt, Rollout
from csr_ray.stages.state import RunState
from csr_ray.stages.summary import summary
from csr_ray.store.atomic import write_json
from csr_ray.store.digests import plain_files
from csr_ray.store.journal import Journal
from csr_ray.store.marked_answers import write_marked_answers
from csr_ray.store.quarantine import Quarantine
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import Outcome, join_example_units, write_example_unit, write_rollouts
from csr_ray.store.units import unit_name

COLOURS = ("red", "green", "blue", "navy", "amber", "violet")
THINGS = ("circle", "square", "bolt", "leaf", "hammer", "flag", "dog", "chair")
CUT_OFF = ("No", "There is a")
NUM_TREES = 48
NUM_ANSWERS = 60
_METRICS = {"chair_s": 0.45, "chair_i": 0.2, "recall": 0.99, "repeat": 0.01, "sentences": 2.7, "pope_acc": 0.9}


class SyntheticRun:
    """A run of `rounds` rounds. Its methods go on with it, each as far as it says.

    Args:
        unit: prompts of a unit.
        num_pictures: how many different ones there are, written beside the folder; each is for many prompts.
        picture_px: their width.
    """

    def __init__(
        self,
        root: Path,
        *,
        rounds: int = 3,
        unit: int = 16,
        num_pictures: int = 8,
        picture_px: int = 64,
        seed: int = 0,
    ) -> None:
        self.folder = RunFolder(root)
        self.images = root.parent / f"{root.name}-images"
        self.config = _config(root, rounds=rounds, unit=unit)
        self._random = np.random.default_rng(seed)
        self._num_pictures, self._picture_px = num_pictures, picture_px
        self._method = Csr(search=self.config.search, reward=self.config.reward, pairs=self.config.pairs)
        self._trees = [_tree(self._random) for _ in range(NUM_TREES)]
        self._outcomes: dict[int, Outcome] = {}
        self._units: dict[int, list[Path]] = {}
        self._num_prompts = 0
        self.journal = Journal(self.folder.journal)

    def begin(self) -> None:
        """Config, the pictures, and what stands in the journal before the first round."""
        self.images.mkdir(parents=True, exist_ok=True)
        for number in range(self._num_pictures):
            (self.images / f"{number}.png").write_bytes(_picture(number, width=self._picture_px))
        self.folder.root.mkdir(parents=True, exist_ok=True)
        self.folder.config.write_text(yaml.safe_dump(to_plain(self.config), sort_keys=False))
        self.journal.commit("model", name="synthetic/policy", revision=None)
        self.journal.commit("start", seconds=12.5, seats=[])
        self._evaluate(0)

    def roll_out(self, round_index: int, *, num_prompts: int) -> Iterator[str]:
        """Commit the units of so many prompts; yields the name of each behind its line."""
        cycle = self._cycle(round_index)
        left = num_prompts
        while left:
            num = min(left, self.config.run.unit)
            left -= num
            prompts = [self._prompt() for _ in range(num)]
            yield self._commit(cycle, prompts)

    def _commit(self, cycle: Cycle, prompts: Sequence[Prompt]) -> str:
        name = unit_name([prompt.id for prompt in prompts])
        rollouts = [
            Rollout(
                prompt=prompt,
                candidates=self._trees[int(self._random.integers(NUM_TREES))],
                policy_version=cycle.policy_version,
                seed=number,
            )
            for number, prompt in enumerate(prompts)
        ]
        path = self.folder.candidates(cycle, unit=name)
        digest = write_rollouts(path, rollouts=rollouts)
        self._build(cycle, name=name, rollouts=rollouts)
        num_nodes = sum(len(rollout.candidates) for rollout in rollouts)
        self.journal.commit(
            "rollout",
            **cycle.key,
            unit=name,
            ids=[prompt.id for prompt in prompts],
            position=self._num_prompts,
            prompts=len(rollouts),
            failed=0,
            rejected=[],
            nodes=num_nodes,
            seconds=0.08 * len(rollouts),
            tokens=9 * num_nodes,
            sentences=num_nodes,
            texts_cut=0,
            rollout_s=0.5 * len(rollouts),
            score_wait_s=0.01 * len(rollouts),
            counters=Counters().to_plain(),
            files=plain_files({path: digest}, root=self.folder.root),
        )
        return name

    def set_aside(self, reasons: Sequence[str]) -> None:
        """Lines of the quarantine, one for each reason."""
        rejected = [
            Prompt(id=f"bad{number}", image="gone.png", text="?", source=f"prompts.jsonl:{number}").refused(reason)
            for number, reason in enumerate(reasons)
        ]
        Quarantine(self.folder.quarantine).add(rejected)

    def decide(self, round_index: int) -> int:
        """Join the pairs of a round, and return how many there are."""
        cycle = self._cycle(round_index)
        total, digest = join_example_units(self.folder.pairs(cycle), units=self._units[round_index])
        self.journal.commit(
            "examples",
            **cycle.key,
            made=total.made,
            dropped=total.dropped,
            rates={},
            **{name: total.mean(name) for name in total.sums},
            seconds=1.0,
            prompts=0,
            source=None,
            files=plain_files({self.folder.pairs(cycle): digest}, root=self.folder.root),
        )
        return total.made

    def finish_round(self, round_index: int) -> None:
        """What a round ends with, and the summary."""
        cycle, version = self._cycle(round_index), round_index + 1
        made = self.journal.find("examples", **cycle.key)
        assert made is not None
        self.journal.commit(
            "train",
            **cycle.key,
            version=version,
            num_pairs=made["made"],
            num_steps=40,
            seconds=20.0,
            optimizer_s=15.0,
            loss_first=0.69,
            loss_last=0.3,
            metrics={},
            dose={},
        )
        self.journal.commit(
            "publish", **cycle.key, version=version, bytes=1 << 20, seconds=2.0, max_probe_gap=1e-5, swallowed=0.01,
            kept=1.0,
        )  # fmt: skip
        self._evaluate(version)
        for path in self._units[round_index]:
            path.unlink(missing_ok=True)
        self.journal.commit("round", round=round_index, wall_s=60.0)
        self._summarise()

    def finish(self) -> None:
        """The end of the run; there is no model in the folder."""
        rounds = self.config.run.rounds
        self.journal.commit("finished", rounds=rounds, version=rounds, swallowed=0.0, kept=1.0, files={})
        self._summarise()

    def whole(self, *, num_pairs: int) -> None:
        """All rounds, with about so many pairs in all of them together."""
        self.begin()
        rounds = self.config.run.rounds
        for index in range(rounds):
            for _ in self.roll_out(index, num_prompts=num_pairs // rounds + (index < num_pairs % rounds)):
                pass
            self.decide(index)
            self.finish_round(index)
        self.finish()

    def _build(self, cycle: Cycle, *, name: str, rollouts: Sequence[Rollout]) -> None:
        outcome, examples = Outcome(), []
        for rollout in rollouts:
            found = self._method.examples(Phase(), rollout)
            if isinstance(found, Dropped):
                outcome.drop(found.reason)
                continue
            for example in found:
                outcome.count(example)
                examples.append(example)
        path = self.folder.example_unit(cycle, unit=name)
        write_example_unit(path, examples=examples, outcome=outcome)
        self._units.setdefault(cycle.round_index, []).append(path)

    def _evaluate(self, version: int) -> None:
        share = 0.6**version
        metrics = {**_METRICS, "chair_s": _METRICS["chair_s"] * share, "num_images": 300}
        intervals = {"chair_s": [max(0.0, metrics["chair_s"] - 0.05), metrics["chair_s"] + 0.05]}
        path = self.folder.marked_answers(version)
        digest = write_marked_answers(path, answers=[self._answer(number, version) for number in range(NUM_ANSWERS)])
        files = plain_files({path: digest}, root=self.folder.root)
        self.journal.commit("eval", version=version, metrics=metrics, intervals=intervals, seconds=8.0, files=files)

    def _answer(self, number: int, version: int) -> MarkedAnswer:
        """Of these every third names a dog that is not there, and stops doing that in a later version."""
        absent = ("dog",) if number % 3 == 0 and version < number % 7 else ()
        return MarkedAnswer(
            asked_as="describe",
            id=f"held_out_{number:04d}",
            image=str(self.images / f"{number % self._num_pictures}.png"),
            question="Describe the picture.",
            answer="There is a red circle." + " There is a dog." * len(absent),
            truth='["circle"]',
            mark=Mark(counts={"chair_s": (float(bool(absent)), 1.0)}, absent=absent),
        )

    def _summarise(self) -> None:
        state = self._state()
        versions = {"csr_ray": "synthetic"}
        write_json(
            self.folder.summary,
            value=summary(self.journal, config=self.config, versions=versions, cycles_of=state.cycles),
        )

    def _state(self) -> RunState:
        return RunState(config=self.config, folder=self.folder, journal=self.journal, model="", versions={})

    def _cycle(self, round_index: int) -> Cycle:
        return Cycle(round_index=round_index, phase=Phase(), position=0, policy_version=round_index)

    def _prompt(self) -> Prompt:
        number = self._num_prompts
        self._num_prompts += 1
        image = self.images / f"{number % self._num_pictures}.png"
        return Prompt(id=f"p{number:06d}", image=str(image), text=f"Describe the picture number {number}.")


def _config(root: Path, *, rounds: int, unit: int) -> Config:
    tree: dict[str, Any] = {
        "method": "csr",
        "run": {"dir": str(root), "rounds": rounds, "unit": unit},
        "data": {"prompts": "prompts.jsonl"},
        "policy": {"model": "synthetic/policy"},
        "scorer": {"model": "synthetic/clip"},
    }
    return parse_config(tree)


def _tree(random: np.random.Generator) -> tuple[Candidate, ...]:
    """A tree of three depths, five candidates a node and three kept a depth; some answers are cut off."""
    nodes: list[Candidate] = []
    alive: list[int | None] = [None]
    for depth in (1, 2, 3):
        grown: list[int] = []
        for parent in alive:
            for _ in range(5 if depth == 1 else 3):
                is_final = depth == 3 or (depth == 2 and random.random() < 0.3)
                words = _sentence(random) if not is_final or random.random() < 0.9 else str(random.choice(CUT_OFF))
                own, image = 100 * random.random(), 15 + 25 * random.random()
                nodes.append(
                    Candidate(
                        node=len(nodes),
                        text=words,
                        token_ids=tuple(int(token) for token in random.integers(5, 900, size=9)),
                        logp=-8 * random.random(),
                        parent=parent,
                        depth=depth,
                        scored_text=words,
                        scores={"self": own, "image": image},
                        reward=(own + image) / 2,
                        final=is_final,
                    )
                )
                grown += [] if is_final else [len(nodes) - 1]
        grown.sort(key=lambda node: -(nodes[node].reward or 0.0))
        kept = grown[:2] + grown[-1:] if len(grown) > 3 else grown
        for node in kept:
            nodes[node] = replace(nodes[node], kept=True)
        alive = list(kept)
    return tuple(nodes)


def _sentence(random: np.random.Generator) -> str:
    colour, thing, other = random.choice(COLOURS), random.choice(THINGS), random.choice(THINGS)
    return f"There is a {colour} {thing} to the left of a {other}."


def _picture(number: int, *, width: int) -> bytes:
    """A picture that JPEG packs as it packs a photograph: soft shapes with some noise."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, width * 3 // 4), Image.Resampling.BICUBIC)
    noise = random.normal(0, 6, (width * 3 // 4, width, 3))
    pixels = np.clip(np.asarray(image, dtype=float) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
