"""Merging a LoRA into weights, and digests of them: on the device and on the host, against copies of the same bytes.

`merge_vs_copy` and `digest_vs_copy` are times by that of a copy of those bytes in the same memory: 1 is memory speed.
Merges of W [out, in] with B [out, r] and A [r, in], over all layers there are:

    csr_ray   (float32(W) + scale B A in float32), rounded once, by a product that adds to a float32 copy of W: as
              `csr_ray.policy.weights` forms it
    dense     the same by a product, which is then added; this is how csr_ray did it first
    addmm     one product in W's dtype, whose sum is float32's inside of the kernel; B and A are rounded before

`changed` is the share of numbers in which such a merge differs from csr_ray's. Digests: xxh3, as
`csr_ray.store.digests`, by one thread and by all cores; SHA-256, which csr_ray had first; and for the device, where
neither exists, a sum of 8-byte words times fixed odd numbers modulo 2^64, which finds what goes wrong by itself and
is no seal against somebody who forges.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from card import peak_bytes, row, timed_s
from sizes import Size

from csr_ray.policy.lora import LoraDelta
from csr_ray.store.digests import Digest

_WORDS = 1 << 17  # of a block of the device's digest: its multipliers are 1 MiB, which stays in a cache
_SCALE = 2.0
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One weight with its update; `merged` is where a merge goes."""

    weight: torch.Tensor
    delta: LoraDelta
    merged: torch.Tensor


def measure(*, device: str, size: Size, report: Any) -> None:
    rows: list[dict[str, Any]] = []
    places = [device] if device == "cpu" else [device, "cpu"]
    for place in places:
        num_layers = size.merged_layers if place == device else 1
        layers = _layers(size, place=place, num_layers=num_layers)
        repeats = size.repeats if place == device else 3
        rows += _merges(layers, place=place, repeats=repeats)
        report(rows=rows)
        rows += _digests(layers, place=place, repeats=repeats)
        report(rows=rows)
    if device != "cpu":
        rows += _transfers(_layers(size, place=device, num_layers=1), repeats=size.repeats)
        report(rows=rows)


def multipliers(*, device: str) -> torch.Tensor:
    """Fixed odd 64-bit numbers, [_WORDS]."""
    random = torch.Generator().manual_seed(20_26)
    return (torch.randint(-(2**62), 2**62, (_WORDS,), generator=random) * 2 + 1).to(device)


def word_sum(tensor: torch.Tensor, *, factors: torch.Tensor, add: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The digest of a tensor as one 64-bit number on its own device.

    Args:
        factors: `multipliers`.
        add: `weighted`, compiled or not.
    """
    content = tensor.detach().contiguous().view(torch.uint8).flatten()
    padding = -len(content) % (8 * _WORDS)
    if padding:
        content = torch.nn.functional.pad(content, (0, padding))
    sums = add(content.view(torch.int64).view(-1, _WORDS), factors)
    # Where a block stands counts, too.
    return (sums * factors[: len(sums)]).sum()


def weighted(words: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """[blocks] sums of words times factors, modulo 2^64, of [blocks, words]."""
    return (words * factors).sum(dim=1)


def _merges(layers: Sequence[Layer], *, place: str, repeats: int) -> list[dict[str, Any]]:
    num_bytes = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)

    def copy() -> None:
        for layer in layers:
            layer.merged.copy_(layer.weight)

    def ours(layer: Layer) -> torch.Tensor:
        delta = layer.delta
        total = layer.weight.to(torch.float32, copy=True)
        total.addmm_(delta.up.float(), delta.down.float(), alpha=delta.scale)
        return total.to(layer.weight.dtype)

    def dense(layer: Layer) -> torch.Tensor:
        total = layer.weight.to(torch.float32, copy=True)
        total += layer.delta.dense()
        return total.to(layer.weight.dtype)

    def addmm(layer: Layer) -> torch.Tensor:
        up, down = layer.delta.up.to(layer.weight.dtype), layer.delta.down.to(layer.weight.dtype)
        return torch.addmm(layer.weight, up, down, alpha=layer.delta.scale, out=layer.merged)

    copy_s = timed_s(copy, device=place, repeats=repeats, warm_ups=1)
    rows = [row(f"copy_gb_per_s [{place}]", num_bytes / copy_s / 1e9, "GB/s, each byte counted once")]
    for kind, merge in {"csr_ray": ours, "dense": dense, "addmm": addmm}.items():

        def all_of_them(merge: Callable[[Layer], torch.Tensor] = merge) -> None:
            for layer in layers:
                merge(layer)

        took_s = timed_s(all_of_them, device=place, repeats=repeats, warm_ups=1)
        rows += [
            row(f"merge_gb_per_s [{place}, {kind}]", num_bytes / took_s / 1e9, "GB/s of weights"),
            row(f"merge_vs_copy [{place}, {kind}]", took_s / copy_s, "x the time of a copy"),
        ]
        if (peak := peak_bytes(all_of_them, device=place)) is not None:
            rows.append(row(f"merge_peak_mib [{place}, {kind}]", peak / 2**20, "MiB"))
        if kind != "csr_ray":
            changed = (merge(layers[0]) != ours(layers[0])).float().mean()
            rows.append(row(f"changed [{place}, {kind}]", float(changed), "of the numbers of a layer"))
    return rows


def _digests(layers: Sequence[Layer], *, place: str, repeats: int) -> list[dict[str, Any]]:
    weights = [layer.weight for layer in layers]
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    copy_s = timed_s(
        lambda: [layer.merged.copy_(layer.weight) for layer in layers], device=place, repeats=repeats, warm_ups=1
    )
    factors = multipliers(device=place)
    add: Any = torch.compile(weighted, dynamic=True) if place == "cuda" else weighted
    turns: dict[str, Callable[[], object]] = {
        "word_sum": lambda: [word_sum(weight, factors=factors, add=add) for weight in weights]
    }
    if place == "cpu":
        pieces = [piece for weight in weights for piece in _pieces(weight)]
        pool = ThreadPoolExecutor(os.cpu_count())
        turns |= {
            "sha256": lambda: [hashlib.sha256(piece) for piece in _pieces(weights[0])],
            "xxh3": lambda: [Digest.of_bytes(piece) for piece in pieces],
            "xxh3, all cores": lambda: list(pool.map(Digest.of_bytes, pieces)),
        }
    rows = []
    for kind, turn in turns.items():
        share = weights[0].numel() * weights[0].element_size() if kind == "sha256" else num_bytes
        once = kind == "sha256"
        took_s = timed_s(turn, device=place, repeats=1 if once else repeats, warm_ups=0 if once else 1)
        took_s *= num_bytes / share
        rows += [
            row(f"digest_gb_per_s [{place}, {kind}]", num_bytes / took_s / 1e9, "GB/s"),
            row(f"digest_vs_copy [{place}, {kind}]", took_s / copy_s, "x the time of a copy"),
        ]
    if place == "cuda":
        on_device = int(word_sum(weights[0], factors=factors, add=add))
        on_host = int(word_sum(weights[0].cpu(), factors=factors.cpu(), add=weighted))
        rows.append(row("digests_agree [word_sum]", float(on_device == on_host), "1: device and host say the same"))
    return rows


def _transfers(layers: Sequence[Layer], *, repeats: int) -> list[dict[str, Any]]:
    """Between the device's memory and the host's, pinned and not."""
    weight = layers[0].weight
    num_bytes = weight.numel() * weight.element_size()
    rows = []
    for kind, pinned in (("pinned", True), ("pageable", False)):
        host = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=pinned)
        to_host = timed_s(lambda host=host: host.copy_(weight), device="cuda", repeats=repeats)
        to_device = timed_s(lambda host=host: weight.copy_(host), device="cuda", repeats=repeats)
        rows += [
            row(f"to_host_gb_per_s [{kind}]", num_bytes / to_host / 1e9, "GB/s"),
            row(f"to_device_gb_per_s [{kind}]", num_bytes / to_device / 1e9, "GB/s"),
        ]
    return rows


def _layers(size: Size, *, place: str, num_layers: int) -> list[Layer]:
    """All seven matrices of some decoder layers of the first model."""
    shape = next(iter(size.models.values()))
    square, wide, tall = (
        (shape.hidden, shape.hidden), (shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate),
    )  # fmt: skip
    torch.manual_seed(0)
    layers = []
    for rows, columns in [square, square, square, square, wide, wide, tall] * num_layers:
        weight = (torch.randn(rows, columns, device=place) * 0.02).to(torch.bfloat16)
        delta = LoraDelta(
            down=(torch.randn(size.rank, columns, device=place) * 0.02).to(torch.bfloat16),
            up=(torch.randn(rows, size.rank, device=place) * 0.02).to(torch.bfloat16),
            scale=_SCALE,
        )
        layers.append(Layer(weight=weight, delta=delta, merged=torch.empty_like(weight)))
    return layers


def _pieces(weight: torch.Tensor) -> list[memoryview]:
    content = weight.flatten().view(torch.uint8).numpy().data
    return [content[start : start + _CHUNK_BYTES] for start in range(0, len(content), _CHUNK_BYTES)]
