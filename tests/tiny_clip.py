"""A tiny CLIP in open_clip's own list, under both activations, and what it computes written out in plain torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from csr_ray.records import Picture

NAME, QUICK = "tiny-test", "tiny-test-quickgelu"
TAG = "drawn"
SIDE_PX, PATCH_PX, WIDTH, HEADS, LAYERS = 32, 8, 32, 4, 3
CONFIG = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": SIDE_PX, "patch_size": PATCH_PX, "width": WIDTH, "layers": LAYERS, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": HEADS, "layers": LAYERS},
}

TEXTS = ("A dog.", "A cat sits on a red chair beside the window.", "Three boats, and behind them a bridge of stone.")

Weights = dict[str, torch.Tensor]


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def list_tiny_clip(folder: Path) -> Path:
    """Let open_clip list the two names, and return a file of weights that fit both; its tags are the caller's."""
    import open_clip
    from safetensors.torch import save_file

    for name, is_quick in ((NAME, False), (QUICK, True)):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIG, "quick_gelu": is_quick}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    weights = {name: tensor.clone() for name, tensor in open_clip.create_model(NAME).state_dict().items()}
    for name in weights:
        if "c_fc.weight" in name or "c_proj.weight" in name:
            weights[name] *= 2.0 if "c_fc" in name else 12.0  # into the range where the two differ, and to weigh more
    save_file(weights, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def draw_pictures(folder: Path) -> list[Picture]:
    """Three pictures, each of a disc."""
    for number, colour in enumerate(("red", "green", "blue")):
        image = Image.new("RGB", (64, 48), colour)
        ImageDraw.Draw(image).ellipse((8 * number, 4, 40, 40), fill="white")
        image.save(folder / f"{colour}.png")
    return [Picture(path=str(path)) for path in sorted(folder.glob("*.png"))]


def scores(model: str, pictures: Sequence[Picture], *, dtype: str = "float32", device: str = "cpu") -> torch.Tensor:
    """What the scorer gives each picture with each of `TEXTS`, [pictures, texts]."""
    from actors.score.clip import ClipModel

    clip = ClipModel(model, dtype=dtype, device=device)
    flat, _ = clip.scores([(picture, text) for picture in pictures for text in TEXTS])
    return torch.tensor(flat, dtype=torch.float64).reshape(len(pictures), len(TEXTS))


def plain_scores(
    weights: Weights, *, pixels: torch.Tensor, tokens: torch.Tensor, act: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """100 cos of images [I, 3, side, side] with texts [T, context], as [I, T], computed in float64."""
    held = {name: tensor.double() for name, tensor in weights.items()}
    patches = torch.nn.functional.conv2d(pixels.double(), held["visual.conv1.weight"], stride=PATCH_PX)
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([held["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = _norm(x + held["visual.positional_embedding"], held, name="visual.ln_pre")
    x = _blocks(x, held, prefix="visual.", act=act, mask=None)
    images = _norm(x[:, 0], held, name="visual.ln_post") @ held["visual.proj"]

    num = tokens.shape[1]
    x = held["token_embedding.weight"][tokens] + held["positional_embedding"]
    x = _blocks(x, held, prefix="", act=act, mask=torch.ones(num, num).tril().log().double())
    x = _norm(x, held, name="ln_final")
    texts = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ held["text_projection"]
    unit = torch.nn.functional.normalize
    return 100 * unit(images, dim=-1) @ unit(texts, dim=-1).T


def _blocks(
    x: torch.Tensor,
    held: Weights,
    *,
    prefix: str,
    act: Callable[[torch.Tensor], torch.Tensor],
    mask: torch.Tensor | None,
) -> torch.Tensor:
    for layer in range(LAYERS):
        at = f"{prefix}transformer.resblocks.{layer}."
        normed = _norm(x, held, name=f"{at}ln_1")
        joined = normed @ held[f"{at}attn.in_proj_weight"].T + held[f"{at}attn.in_proj_bias"]
        queries, keys, values = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        logits = queries @ keys.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        if mask is not None:
            logits = logits + mask
        seen = (logits.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)
        x = x + _linear(seen, held, name=f"{at}attn.out_proj")
        hidden = act(_linear(_norm(x, held, name=f"{at}ln_2"), held, name=f"{at}mlp.c_fc"))
        x = x + _linear(hidden, held, name=f"{at}mlp.c_proj")
    return x


def _linear(x: torch.Tensor, held: Weights, *, name: str) -> torch.Tensor:
    return x @ held[f"{name}.weight"].T + held[f"{name}.bias"]


def _norm(x: torch.Tensor, held: Weights, *, name: str) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], held[f"{name}.weight"], held[f"{name}.bias"])
