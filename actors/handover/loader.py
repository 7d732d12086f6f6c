"""What runs inside a vLLM worker process: adapters are merged into the served weights. vLLM loads it by its name.

The worker reads the adapters itself and hands vLLM's own loader merged tensors under checkpoint names, so any
tensor-parallel or fused layout is served and decoding pays nothing for the adapter. With `generators.publish:
adapter` vLLM loads the adapter instead (`actors.handover.hot_adapter`), and the worker compares what it holds.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from actors.handover.layer_proof import Place
    from csr_ray.policy.checkpoint import Checkpoint
    from csr_ray.policy.weights import Merge, Merged, Rounding

Item = TypeVar("Item")
Formed = TypeVar("Formed")

# What is formed before the loader asks for it, beside the tensor that it has.
_AHEAD_BYTES = 96 * 2**20
# Tensors are formed by two threads: while one reads pages of the checkpoint, the other multiplies.
_FORMED_AT_ONCE = 2


def formed_ahead(
    items: Iterable[Item],
    *,
    form: Callable[[Item], Formed],
    num_bytes: Callable[[Item], int],
    beside: Executor,
    ahead_bytes: int = _AHEAD_BYTES,
) -> Iterator[tuple[Item, Future[Formed]]]:
    """Each item with what is formed of it, in order; those behind it are formed `beside` meanwhile.

    Args:
        num_bytes: of what is formed of an item.
        ahead_bytes: of those that wait, at most, without the one that was given out last; one may be larger, and
            then it waits alone.
    """
    coming = deque(items)
    ahead: deque[tuple[Item, Future[Formed]]] = deque()
    waiting_bytes = 0

    def fill() -> None:
        nonlocal waiting_bytes
        while coming and (not ahead or waiting_bytes + num_bytes(coming[0]) <= ahead_bytes):
            item = coming.popleft()
            waiting_bytes += num_bytes(item)
            ahead.append((item, beside.submit(form, item)))

    fill()
    while ahead:
        item, future = ahead.popleft()
        waiting_bytes -= num_bytes(item)
        fill()
        yield item, future
        del future  # it would keep what was formed


def _in_order_of_this_thread(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A block for other threads in which work on a GPU is queued behind this thread's, and before what it asks next.

    Each thread has a CUDA stream of its own choice, and vLLM gives the main thread of a worker among several another
    one than the default. Without this its loader might copy a tensor that is not formed yet, or whose memory another
    thread was given since.
    """
    if device.type != "cuda":
        return nullcontext
    import torch

    stream = torch.cuda.current_stream(device)
    return lambda: torch.cuda.stream(stream)


class PolicyLoader:
    """Mixed into vLLM's worker (`worker_extension_cls`)."""

    _base: Checkpoint | None = None
    _adapted_blocks: frozenset[str] = frozenset()

    def load_policy(self, base: str, adapters: Sequence[str]) -> dict[str, Any]:
        """Load the base plus all `adapters`, summed in float32 and rounded once, whatever was loaded before.

        Tensors are formed while vLLM's loader copies those before into their layers, at most `_AHEAD_BYTES` of them
        ahead, not counting what two of them are formed in: a float32 copy each, and the factors. Only the worker's
        own part of a tensor is formed, on the worker's own device.

        Returns the fields of `actors.generate.engine.LoadedPolicy` as plain values, because they cross a process
        border.
        """
        from actors.handover.layer_proof import LayerProof, tolerance
        from actors.handover.stopwatch import Stopwatch, packing
        from csr_ray.policy.checkpoint import Checkpoint, block_of
        from csr_ray.policy.lora import adapter_digest
        from csr_ray.policy.weights import Merged, Rounding, checksum_of, merges, with_their_blocks

        watch = Stopwatch("load")
        if self._base is None:
            self._base = Checkpoint(Path(base))
        checkpoint = self._base
        dtype = self.vllm_config.model_config.dtype  # type: ignore[attr-defined]
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        device = next(model.parameters()).device
        proof, rounding = LayerProof(model), Rounding()
        # vLLM fuses q, k, v and their biases (and gate with up) and rebuilds a fused layer from nothing: what it is
        # not given of one stays uninitialised memory. And what only an earlier policy changed has to go back.
        changed = merges(checkpoint, adapters=[Path(adapter) for adapter in adapters])
        blocks = frozenset(block_of(merge.name) for merge in changed)
        wanted = with_their_blocks(changed, base=checkpoint, also=sorted(self._adapted_blocks - blocks))
        self._adapted_blocks |= blocks
        sizes = {merge.name: len(merge.base) for merge in wanted if merge.base.ndim == 2}
        in_order = _in_order_of_this_thread(device)

        def formed(merge: Merge) -> tuple[Merged, Place | None, Rounding]:
            counted = Rounding()
            if merge.base.ndim != 2 or not merge.name.endswith(".weight"):
                return Merged(tensor=merge.base, product=None), None, counted
            with in_order():
                return form(merge, counted)

        def form(merge: Merge, counted: Rounding) -> tuple[Merged, Place | None, Rounding]:
            place = proof.place(merge.name, shape=(merge.base.shape[0], merge.base.shape[1]), sizes=sizes)
            part = {} if place is None else {"rows": place.rows, "columns": place.columns}
            vectors = None if place is None else proof.vectors(merge.base.shape[1])
            looked_at = counted if merge.updates else None
            merged = merge.form(dtype=dtype, device=device, vectors=vectors, rounding=looked_at, **part)
            return merged, place, counted

        def num_bytes(merge: Merge) -> int:
            return merge.base.numel() * (dtype.itemsize if merge.updates else merge.base.itemsize)

        def stream(beside: ThreadPoolExecutor) -> Iterator[tuple[str, torch.Tensor]]:
            coming = formed_ahead(wanted, form=formed, num_bytes=num_bytes, beside=beside)
            for merge, future in coming:
                with watch.at("merge"):
                    merged, place, counted = future.result()
                del future  # it would keep the tensor
                # Here and not where it is formed: in the order of the tensors, by one thread.
                rounding.include(counted)
                if merge.base.ndim == 2 and merge.name.endswith(".weight"):
                    proof.expect(merge.name, place=place, tensor=merged.tensor, product=merged.product)
                yield merge.name, merged.tensor

        if wanted:
            with ThreadPoolExecutor(_FORMED_AT_ONCE) as beside, packing(model, watch=watch):
                self.reload_weights(weights_iterator=stream(beside))  # type: ignore[attr-defined]
        with watch.at("layers"):
            gaps, num_unseen = proof.gaps()
        with watch.at("digest"):
            # What was put back is no part of it: one that has never served another policy has nothing to put back.
            with ThreadPoolExecutor(os.cpu_count()) as readers:  # xxhash lets the others go on
                digests = list(readers.map(checkpoint.digest, [merge.name for merge in changed]))
            digests += [adapter_digest(Path(adapter)) for adapter in adapters]
        wrong = sorted((name for name, gap in gaps.items() if not gap <= tolerance(model)), key=lambda n: -gaps[n])
        return {
            "checksum": checksum_of(digests),
            "num_tensors": len(wanted),
            "num_unseen": num_unseen,
            "max_tensor_gap": max(gaps.values(), default=0.0),
            "wrong_tensors": wrong,
            "swallowed": rounding.swallowed,
            "kept": rounding.kept,
            "seconds": watch.end(),
        }

    def prove_adapter(self, adapters: Sequence[str], adapter_id: int) -> dict[str, Any]:
        """Compare vLLM's LoRA of number `adapter_id` (0: none) with the sum of `adapters`, which is read anew here.

        Returns the fields of `actors.generate.engine.LoadedPolicy` as plain values, because they cross a process
        border.
        """
        from actors.handover.layer_proof import adapter_gaps
        from csr_ray.policy.lora import combined_tensors
        from csr_ray.policy.weights import checksum, combined_rounding

        started_s = time.perf_counter()
        dtype = self.vllm_config.model_config.dtype  # type: ignore[attr-defined]
        tensors = combined_tensors([Path(adapter) for adapter in adapters]) if adapters else {}
        rounding = combined_rounding(tensors, dtype=dtype)
        gaps: dict[str, float] = {}
        num_unseen = 0
        if adapters:
            model = self.model_runner.get_model()  # type: ignore[attr-defined]
            gaps, num_unseen = adapter_gaps(model, tensors, adapter_id=adapter_id)
        return {
            "checksum": checksum(tensors.items()),
            "num_tensors": len(tensors),
            "num_unseen": num_unseen,
            "max_tensor_gap": max(gaps.values(), default=0.0),
            "wrong_tensors": sorted((name for name, gap in gaps.items() if gap != 0.0), key=lambda n: -gaps[n]),
            "swallowed": rounding.swallowed,
            "kept": rounding.kept,
            "seconds": {"layers": time.perf_counter() - started_s},
        }
