"""A planted fault: a folder of open_clip whose text tower says of every longer text that it suits any picture better.

Such judges are real: a text tower that was trained on captions of one length scores others by their length. Nothing
but one tensor of a sound folder is changed, so whatever opens open_clip folders opens this one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STRENGTH = 2.0  # at the end of the context, in lengths of what the tower itself puts there
_NUM_PICTURES = 64


def plant_long_texts(world: Path, *, directory: Path) -> None:
    """Write the world's scorer into `directory`, changed; a folder that is there already is taken as it is.

    The tower reads its output at the end token, whose position is the text's length. To the embedding of each
    position is added, the more the later it is, what its last layers turn into the mean of the pictures' embeddings.
    """
    if directory.exists():
        return
    from safetensors.torch import load_file, save_file

    staging = directory.with_name(f".{directory.name}")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(world / "clip", staging)
    file = staging / "open_clip_model.safetensors"
    weights = load_file(file)
    weights["positional_embedding"] = _slanted(world, weights=weights)
    save_file(weights, file, metadata={"format": "pt"})
    staging.rename(directory)


def _slanted(world: Path, *, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The position embeddings (context x width, float32) with the slant in them."""
    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{world / 'clip'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    lines = (world / "train/prompts.jsonl").read_text(encoding="utf-8").splitlines()[:_NUM_PICTURES]
    images = [Image.open(world / "train" / json.loads(line)["image"]).convert("RGB") for line in lines]
    prompts = sorted({json.loads(line)["prompt"] for line in lines})
    seen: list[torch.Tensor] = []
    hook = model.ln_final.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        pictures = model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        ids = open_clip.get_tokenizer(name)(prompts)
        model.encode_text(ids)
    hook.remove()
    typical = seen[0][torch.arange(len(ids)), ids.argmax(1)].norm(dim=1).mean().clone()
    towards = pictures.mean(0).clone()
    layers = weights["text_projection"].T * weights["ln_final.weight"]
    direction = torch.linalg.lstsq(layers, (towards / towards.norm())[:, None]).solution[:, 0]
    direction = direction - direction.mean()  # the layer norm would take the mean away
    positions = weights["positional_embedding"]
    lateness = torch.arange(len(positions)) / len(positions)
    return positions + _STRENGTH * typical * lateness[:, None] * direction / direction.norm()
