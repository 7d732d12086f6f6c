"""A Hugging Face folder's weights, mapped into memory: what is used of them is read once for all processes of a node.

Tensors go by the checkpoint's own names. Knows safetensors; knows no adapters and no engines.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# A safetensors file begins with the length of its header.
_LENGTH_BYTES = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OTHER_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "I32": 4,
    "U32": 4,
    "I64": 8,
    "U64": 8,
}

# Where released checkpoints and transformers' module trees keep the decoder layers of a vision-language model. The
# same layer is `language_model.model.layers.0` in a LLaVA checkpoint, `model.layers.0` in a Qwen2.5-VL one and
# `model.language_model.layers.0` in memory.
_DECODER_HOMES = ("language_model.model.", "model.language_model.", "language_model.", "model.", "")
# `language_model.model.layers.0.self_attn`, and what lies below it.
_BLOCK = re.compile(r"(.*?\.\d+\.[^.]+)\.")


def tensor_files(base: Path) -> dict[str, Path]:
    """Which safetensors file of a Hugging Face folder holds each tensor.

    Raises:
        ValueError: the folder has no safetensors weights.
    """
    if (base / _INDEX).is_file():
        weight_map = json.loads((base / _INDEX).read_text())["weight_map"]
        return {name: base / file for name, file in weight_map.items()}
    if (base / _SINGLE).is_file():
        with safe_open(base / _SINGLE, framework="pt") as weights:
            return dict.fromkeys(weights.keys(), base / _SINGLE)
    raise ValueError(f"model folder {base}: neither {_INDEX} nor {_SINGLE}; save the model as safetensors")


def checkpoint_name(module: str, *, names: Collection[str]) -> str | None:
    """The checkpoint's name for the weight of an in-memory module, or None if the checkpoint has no such layer.

    Example:
        `model.language_model.layers.0.mlp.up_proj` -> `language_model.model.layers.0.mlp.up_proj.weight`.
    """
    if f"{module}.weight" in names:
        return f"{module}.weight"
    home = next((home for home in _DECODER_HOMES if module.startswith(home)), "")
    tail = module.removeprefix(home)
    found = [name for name in (f"{other}{tail}.weight" for other in _DECODER_HOMES) if name in names]
    return found[0] if len(found) == 1 else None


def block_of(name: str) -> str:
    """The block a tensor belongs to: one layer's attention or MLP; outside the layers, its module's parent."""
    match = _BLOCK.match(name)
    return match[1] if match else name.rpartition(".")[0].rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file: `start` is counted in bytes from the file's beginning.

    Every round of a run reads the adapters of all rounds before. A look into the file for each of their tensors is
    slow then, as its header is parsed each time, and `get_tensor` keeps two integers of Python for every tensor that
    it returns (seen in safetensors 0.6.2 to 0.8.0), which in hundreds of rounds are hundreds of MiB.
    """

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Raises ValueError if the file has become shorter since it was looked into."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(tensor.flatten().view(torch.uint8).numpy()) != self.num_bytes:
                raise ValueError(f"{self.file}: cut off before byte {self.start + self.num_bytes}")
        return tensor


def stored_tensors(file: Path, *, skips_other: bool = False) -> dict[str, StoredTensor]:
    """Where the tensors of a safetensors file lie, by name. The file has no gaps between them, which is checked.

    Args:
        skips_other: leave out tensors of a kind that no weights are kept in, such as a model's counters.

    Raises:
        ValueError: it holds numbers of such a kind, and they are not to be left out.
        safetensors.SafetensorError: it is damaged.
    """
    with file.open("rb") as content:
        start = _LENGTH_BYTES + int.from_bytes(content.read(_LENGTH_BYTES), "little")
    stored = {}
    with safe_open(file, framework="pt") as weights:
        for name in weights.offset_keys():
            view = weights.get_slice(name)
            kind, shape = view.get_dtype(), tuple(view.get_shape())
            if (dtype := _DTYPES.get(kind)) is not None:
                stored[name] = StoredTensor(file=file, start=start, dtype=dtype, shape=shape)
                start += stored[name].num_bytes
            elif skips_other and kind in _OTHER_BYTES:
                start += math.prod(shape) * _OTHER_BYTES[kind]
            else:
                raise ValueError(f"{file}: {name} is of {kind}; allowed: {', '.join(_DTYPES)}")
    return stored


class Checkpoint(Mapping[str, torch.Tensor]):
    """The weights of a folder by their names, as views of the mapped files: nobody may write into them.

    Headers are parsed once. Nothing else is read before it is used, and then it stays in the system's page cache as
    long as there is room.

    Raises:
        ValueError: the folder has no safetensors weights.
        safetensors.SafetensorError: a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = tensor_files(folder)
        found = [stored_tensors(file, skips_other=True) for file in sorted(set(files.values()))]
        # In the files' own order, which is how a disk likes to be read.
        self._stored = {
            name: stored for of_file in found for name, stored in of_file.items() if files.get(name) == stored.file
        }
        self._maps: dict[Path, torch.Tensor] = {}
        self._digests: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        if stored.num_bytes == 0:
            return torch.empty(stored.shape, dtype=stored.dtype)
        raw = self._map(stored.file)[stored.start : stored.start + stored.num_bytes]
        if stored.start % stored.dtype.itemsize:
            raw = raw.clone()  # a view of another dtype has to begin at a multiple of its size
        return raw.view(stored.dtype).view(stored.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def digest(self, name: str) -> bytes:
        """XXH3 of a tensor's bytes, its dtype and shape; computed once.

        It notices what storage and transport damage, not what somebody forges.
        """
        if name not in self._digests:
            self._digests[name] = digest_of(name, self[name])
        return self._digests[name]

    def _map(self, file: Path) -> torch.Tensor:
        if file not in self._maps:
            size = file.stat().st_size
            self._maps[file] = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
        return self._maps[file]


def digest_of(name: str, tensor: torch.Tensor) -> bytes:
    """XXH3, 128 bits, of a tensor's name, dtype, shape and bytes."""
    digest = xxhash.xxh3_128(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    """safetensors' `save_file`, whose errors of the system are raised as such.

    Raises:
        OSError: the disk is full, or something else of the system failed.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # "I/O error: No space left on device (os error 28)"
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
