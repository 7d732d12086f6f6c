"""What the benchmarks with a judge have in common: that they need one, and what their results say of it."""

from __future__ import annotations

from dataclasses import replace

from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.benchmarks.base import Benchmark, Marks
from csr_ray.judging.session import JudgeSession
from csr_ray.judging.template import OWN, Template


def session_of(benchmark: Benchmark, judge: JudgeSession | None) -> JudgeSession:
    """The judge; raises ConfigError if there is none."""
    if judge is None:
        raise ConfigError(f"--judge-url: {benchmark.name} is marked by a judge; name its endpoint and --judge-model")
    return judge


def check_judge_is_right(benchmark: Benchmark | None, *, name: str, has_judge: bool) -> None:
    """Raises ConfigError if a benchmark lacks its judge, or has one that it would not ask.

    Args:
        benchmark: None: one that a run measures, too; none of these has a judge.
    """
    needs = benchmark is not None and benchmark.needs_judge
    if needs and not has_judge:
        raise ConfigError(f"--judge-url: {name} is marked by a judge; name its endpoint and --judge-model")
    if has_judge and not needs:
        raise ConfigError(f"--judge-url: {name} is marked without a judge; leave it out")


def about_the_judge(
    marks: Marks, *, benchmark: Benchmark, session: JudgeSession, template: Template, papers_judge: str
) -> Marks:
    """The marks with what they have to say of their judge.

    Args:
        papers_judge: whom the papers asked.

    Raises:
        NoDataError: nothing could be marked, so that there are no figures.
    """
    if not marks.outcomes:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in marks.skipped.items())
        raise NoDataError(f"{benchmark.name}: the judge {session.name} marked not one answer ({reasons})")
    words = "this project's own words" if template.name == OWN else f"the prompt {template.name}"
    note = (
        f"Marked by {session.name} with {words}: not comparable to papers, which asked {papers_judge}. Compare only "
        "models that the same judge marked with the same prompt."
    )
    return replace(marks, notes=(*marks.notes, note), more={**marks.more, **session.about(template)})
