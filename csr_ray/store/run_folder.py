"""Where everything of a run lies. Names only; nothing here reads or writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run folder; the names are a contract (docs/architecture.md, "The run folder")."""

    root: Path

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
    def logs(self) -> Path:
        return self.root / "logs"

    def round(self, index: int) -> Path:
        return self.root / f"round_{index:03d}"

    def candidates(self, index: int, *, unit: str) -> Path:
        return self.round(index) / "candidates" / f"unit_{unit}.parquet"

    def pairs(self, index: int) -> Path:
        return self.round(index) / "pairs.parquet"

    def adapter(self, index: int) -> Path:
        return self.round(index) / "adapter"
