"""What a run has cost so far: hours of GPUs and CPUs by role, how much of them was idle, and the price. Arithmetic.

    GPU-hours of a role   = sum over its actors of seconds held x GPUs of each / 3600
    idle share            = 1 - seconds with work / seconds held
    price                 = sum over kinds of GPU of GPU-hours x price of the kind, and CPU-hours x price of a CPU

An actor holds what Ray keeps for it, whether it works or not. What is left of a GPU of which actors hold a part is
counted, too, as the role "unused"; GPUs and nodes that nobody of the run holds are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from csr_ray.config.schema import Cluster
from csr_ray.counters import Usage
from csr_ray.machine.kinds import gpu_kind
from csr_ray.records import JsonDict

_HOUR_S = 3600.0


def cost(usages: Iterable[Usage], *, cluster: Cluster) -> JsonDict:
    """The `cost` of summary.json; hours, fractions in 0..1 and US dollars.

    `usd` is null where the price of something that was held is not known, and `unpriced` then names it.
    """
    by_role: dict[str, list[Usage]] = {}
    for usage in Usage.merged(usages):
        by_role.setdefault(usage.role, []).append(usage)
    everything = [usage for role in by_role.values() for usage in role]
    return {
        **_sums(everything, cluster=cluster),
        "roles": {role: _sums(rows, cluster=cluster) for role, rows in by_role.items()},
        "kinds": _gpu_hours_by_kind(everything),
        "prices": _prices(everything, cluster=cluster),
        "unpriced": _unpriced(everything, cluster=cluster),
    }


def in_words(cost: Mapping[str, object]) -> str:
    """A `cost` as a person reads it: "1.25 GPU-hours (12 % idle), $3.75"; CPUs where there is no GPU.

    What of it is missing or no number is left out, because it may be of a file that somebody else has written.
    """
    unit = "GPU" if cost.get("gpu_hours") else "CPU"
    hours, idle, usd = (cost.get(key) for key in (f"{unit.lower()}_hours", "idle_share", "usd"))
    if not isinstance(hours, float):
        return ""
    words = f"{hours:.3g} {unit}-hours"
    words += f" ({100 * idle:.0f} % idle)" if isinstance(idle, float) else ""
    tokens = cost.get("tokens")
    words += f", {tokens:,.0f} tokens" if isinstance(tokens, int | float) and tokens else ""
    if not isinstance(usd, float):
        return words
    return words + (f", ${usd:,.2f}" if usd >= 0.01 or usd == 0 else ", less than a cent")


def _sums(rows: Sequence[Usage], *, cluster: Cluster) -> JsonDict:
    # Actors weigh by the GPUs that they hold, or where nobody has one by themselves.
    weights = [row.gpus for row in rows] if any(row.gpus for row in rows) else [1.0] * len(rows)
    held_s = sum(row.held_s * weight for row, weight in zip(rows, weights, strict=True))
    busy_s = sum(row.busy_s * weight for row, weight in zip(rows, weights, strict=True))
    return {
        "actor_hours": sum(row.held_s for row in rows) / _HOUR_S,
        "gpu_hours": sum(row.gpu_s for row in rows) / _HOUR_S,
        "cpu_hours": sum(row.cpu_s for row in rows) / _HOUR_S,
        "idle_share": 1 - busy_s / held_s if held_s else None,
        "usd": _usd(rows, cluster=cluster),
    }


def _usd(rows: Sequence[Usage], *, cluster: Cluster) -> float | None:
    prices = _prices(rows, cluster=cluster)
    if not prices or _unpriced(rows, cluster=cluster):
        return None
    gpus = sum(row.gpu_s * prices[row.kind] for row in rows if row.gpus)
    cpus = sum(row.cpu_s for row in rows) * (cluster.cpu_usd_per_hour or 0.0)
    return (gpus + cpus) / _HOUR_S


def _gpu_hours_by_kind(rows: Sequence[Usage]) -> dict[str, float]:
    hours: dict[str, float] = {}
    for row in rows:
        if row.gpus:
            hours[row.kind] = hours.get(row.kind, 0.0) + row.gpu_s / _HOUR_S
    return hours


def _prices(rows: Sequence[Usage], *, cluster: Cluster) -> dict[str, float]:
    """US dollars an hour, by kind of GPU and of a "CPU"."""
    prices = {} if cluster.cpu_usd_per_hour is None else {"CPU": cluster.cpu_usd_per_hour}
    for row in rows:
        known = gpu_kind(row.kind, given=cluster.gpu_kinds) if row.gpus else None
        if known is not None and known.usd_per_hour is not None:
            prices[row.kind] = known.usd_per_hour
    return prices


def _unpriced(rows: Sequence[Usage], *, cluster: Cluster) -> list[str]:
    prices = _prices(rows, cluster=cluster)
    return sorted({row.kind or "unknown kind of GPU" for row in rows if row.gpus and row.kind not in prices})
