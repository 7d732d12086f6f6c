"""Prints what `csr-ray plan` has worked out: the work, the layouts, why the first is the fastest, and every rate."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from csr_ray.app.forecast import Option, Planned, in_words
from csr_ray.machine.placement import demands_of

_GIB = 2**30
_MOST_SHOWN = 6
_MOST_THAT_DO_NOT_FIT = 4


def print_forecast(planned: Planned, *, console: Console) -> None:
    for line in _lines(planned):
        console.print(line, soft_wrap=True, markup=False)
    console.print(_layouts(planned))
    for line in (*_why(planned), *_memory(planned), ""):
        console.print(line, soft_wrap=True, markup=False)
    console.print(_stages(planned))
    for note in planned.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)


def _lines(planned: Planned) -> Iterator[str]:
    config, work, machine = planned.config, planned.work, planned.machine
    where = "this machine's CPUs"
    if machine is not None:
        kind = machine.kind
        nodes = f"{planned.num_nodes} node{'s' * (planned.num_nodes > 1)}"
        where = (
            f"{machine.num_gpus} x {machine.name} on {nodes} ({kind.memory_gb:g} GB, {kind.tflops:g} TFLOP/s, "
            f"{kind.memory_gb_per_s:g} GB/s"
            + (f", ${kind.usd_per_hour:g} an hour each)" if kind.usd_per_hour is not None else ", price not known)")
        )
    yield f"plan of {config.method} with {config.policy.model} on {where}"
    cycles = work.rounds * work.phases
    phases = f" of {work.phases} phases" if work.phases > 1 else ""
    answers = sum(asked.answers for asked in work.evaluations)
    yield (
        f"work: {work.rounds} rounds{phases} of {work.prompts:,} prompts; {cycles * work.prompts * work.nodes:,.0f} "
        f"sentences, {work.all_tokens:,.0f} tokens to generate, {cycles * work.pairs:,.0f} pairs, "
        f"{cycles * work.steps:,} optimizer steps, {answers:,} answers of evaluation, "
        f"{work.gate_looks * work.gate_answers:,} answers to the gate"
    )


def _layouts(planned: Planned) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layout", "time", "GPU-hours", "cost", "fits"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("layout", "fits") else "right")
    fitting = [option for option in planned.options if option.forecast is not None]
    for option in fitting[:_MOST_SHOWN]:
        found = option.forecast
        assert found is not None
        cost = "?" if found.usd is None else f"${found.usd:,.0f}"
        if planned.machine is None and found.usd is None:
            cost = "-"
        gpu_hours = f"{found.gpu_hours:,.1f}" if planned.machine else "-"
        table.add_row(option.choice.name, duration(found.seconds), gpu_hours, cost, _fits(option))
    if len(fitting) > _MOST_SHOWN:
        table.add_row(f"and {len(fitting) - _MOST_SHOWN} slower ones", "", "", "", "")
    others = planned.options[len(fitting) :]
    for option in others[:_MOST_THAT_DO_NOT_FIT]:
        table.add_row(option.choice.name, "", "", "", f"no: {option.choice.reason}")
    if len(others) > _MOST_THAT_DO_NOT_FIT:
        table.add_row(f"and {len(others) - _MOST_THAT_DO_NOT_FIT} more", "", "", "", "no")
    return table


def _fits(option: Option) -> str:
    saved = [key for key in option.choice.overrides if key in _SAVINGS]
    words = {key: option.choice.overrides[key] for key in saved}
    return f"yes, with {in_words(words)}" if saved else "yes"


_SAVINGS = ("train.micro_batch_size", "train.gradient_checkpointing", "train.deepspeed_stage")


def why_fastest(planned: Planned) -> str:
    """One sentence: where the fastest layout's time goes, and what the next one loses."""
    fitting = [option for option in planned.options if option.forecast is not None]
    best = fitting[0].forecast
    assert best is not None
    stage = max(best.stages, key=lambda name: best.stages[name])
    engines = fitting[0].choice.config.generators
    num_gpus = best.num_gpus
    on = engines.min * max(1, int(engines.gpus))
    words = (
        f"{stage} takes {best.stages[stage] / best.seconds:.0%} of its time, and {engines.min} engine"
        f"{'s generate' if engines.min > 1 else ' generates'} on {on} of {num_gpus} GPU{'s' * (num_gpus > 1)}"
    )
    if len(fitting) < 2:
        return f"the only layout that fits: {words}"
    other = fitting[1].forecast
    assert other is not None
    lost = max(best.stages, key=lambda name: other.stages[name] - best.stages[name])
    return (
        f"fastest because {words}; the next one ({fitting[1].choice.name}) takes "
        f"{duration(other.stages[lost] - best.stages[lost])} more for {lost}"
    )


def _why(planned: Planned) -> Iterator[str]:
    choice = planned.best.choice
    if planned.machine is not None:
        yield why_fastest(planned)
    who = ", ".join(
        f"{demand.num} {demand.role}{'s' * (demand.num > 1)} with "
        f"{f'{demand.gpus:g} GPU' if demand.gpus else f'{demand.cpus:g} CPU'}"
        for demand in demands_of(choice.config, needs_scorer=planned.needs_scorer)
    )
    yield f"actors: {who}"
    if planned.machine is not None:
        yield f"overrides: {in_words(choice.overrides) or 'none, as the config is'}"


def _memory(planned: Planned) -> Iterator[str]:
    for who, parts in planned.best.choice.memory.items():
        of = "each GPU" if planned.machine is not None else "main memory"
        yield (
            f"memory of {who}, {sum(parts.values()) / _GIB:.{0 if planned.machine else 1}f} GiB of {of}: "
            + ", ".join(f"{num_bytes / _GIB:.1f} {part}" for part, num_bytes in parts.items())
        )


def _stages(planned: Planned) -> Table:
    found, rates = planned.best.forecast, planned.best.rates
    assert found is not None and rates is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("stage", "time", "share", "where its rate is from"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("time", "share") else "left")
    for name, cost in rates.items():
        seconds = found.stages[name]
        table.add_row(name, duration(seconds), f"{seconds / found.seconds:.0%}", cost.source)
    table.add_row("whole run", duration(found.seconds), "", "")
    return table


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{seconds / 3600:.1f} h"
