"""Where every file of a run lies. This module makes paths only; nothing here reads or writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csr_ray.records import Cycle
from csr_ray.store.pool_events import NAME

# What says what a folder is that others get, in the form that the Hugging Face hub reads: the model, every adapter. A
# person may change it, so no line of the journal names it, as no line names the page.
CARD = "README.md"


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run folder; the names are a contract (docs/architecture.md, "The run folder").

    Attributes:
        root: where its files are on this machine.
        url: where it is kept, if `root` is only the working copy of it; else empty.
    """

    root: Path
    url: str = ""

    @property
    def shown(self) -> str:
        """What a person calls it: what `run.dir` says."""
        return self.url or str(self.root)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine.jsonl"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def adapter_of_all(self) -> Path:
        """The sum of all phases' adapters as one PEFT folder, with `generators.publish: adapter`."""
        return self.root / "adapter"

    def answers(self, version: int) -> Path:
        """The answers of an evaluation that is under way."""
        return self.root / "eval" / f"version_{version:03d}.jsonl"

    def marked_answers(self, version: int) -> Path:
        """The answers of an evaluation that is done, each with its mark."""
        return self.root / "eval" / f"version_{version:03d}.parquet"

    @property
    def judge_replies(self) -> Path:
        """What a judge at an endpoint has answered about rollouts, so that nothing is paid for twice."""
        return self.root / "judge.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def name(self) -> str:
        """The last part of where it is kept."""
        return self.shown.rstrip("/").rsplit("/", 1)[-1] or self.root.resolve().name

    @property
    def title(self) -> str:
        """What people are shown as its name: the last part, but of `photos/run`, as `csr-ray init` has it, photos."""
        parts = (self.url or str(self.root.resolve())).rstrip("/").split("/")
        return parts[-2] if parts[-1] == "run" and len(parts) > 1 and parts[-2] else parts[-1]

    @property
    def traces(self) -> Path:
        """Folder of what every process did when, with `run.trace`."""
        return self.root / "trace"

    def tracker(self, name: str) -> Path:
        """Where a tracker (`csr_ray.tracking`) keeps what it has; among the logs, because it grows like them."""
        return self.logs / name

    @property
    def driver_log(self) -> Path:
        """Tracebacks of the process that runs the loop; actors have logs of their own."""
        return self.logs / "driver.log"

    @property
    def progress(self) -> Path:
        """What the driver is doing now (`csr_ray.stages.progress`); nothing rests on it."""
        return self.root / "progress.json"

    @property
    def pool_events(self) -> Path:
        """A line for each actor that was lost, serves again, came or was let go (`csr_ray.store.pool_events`)."""
        return self.logs / NAME

    @property
    def lock(self) -> Path:
        """Who works on the run; there only meanwhile."""
        return self.root / "run.lock"

    def round(self, index: int) -> Path:
        return self.root / f"round_{index:03d}"

    def cycle(self, cycle: Cycle) -> Path:
        """The folder of a cycle: the round's own for its first phase, a folder in it for every other phase."""
        folder = self.round(cycle.round_index)
        return folder if cycle.position == 0 else folder / cycle.phase.name

    def candidates(self, cycle: Cycle, *, unit: str) -> Path:
        return self.cycle(cycle) / "candidates" / f"unit_{unit}.parquet"

    def example_units(self, cycle: Cycle) -> Path:
        """Folder of the examples as they are built, one file for each unit; removed when the round is over."""
        return self.cycle(cycle) / "examples"

    def example_unit(self, cycle: Cycle, *, unit: str) -> Path:
        return self.example_units(cycle) / f"unit_{unit}.parquet"

    def pairs(self, cycle: Cycle) -> Path:
        """The file with all examples of a cycle whose examples are pairs, once all of them are built."""
        return self.cycle(cycle) / "pairs.parquet"

    def examples(self, cycle: Cycle) -> Path:
        """The file with all examples of the cycle: of pairs, or of single answers (`Phase.num_answers`)."""
        return self.pairs(cycle) if cycle.phase.num_answers == 2 else self.cycle(cycle) / "examples.parquet"

    def adapter(self, cycle: Cycle) -> Path:
        return self.cycle(cycle) / "adapter"

    def checkpoints(self, cycle: Cycle) -> Path:
        """Folder of the optimizer's state while the cycle is trained, with `train.checkpoint_steps`."""
        return self.cycle(cycle) / "checkpoints"
