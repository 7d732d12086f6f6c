"""CLIP's two towers at real shapes with random weights: pictures and sentences a second, and what rounding does.

The text tower is csr_ray's own (`actors.score.text_tower`), which leaves out the padding, beside open_clip's.
Decoding and resizing pictures, which a scorer does on the CPU, is not in it. Precisions: weights in float32 with
products in float32 or TF32; float32 weights under autocast in bfloat16, which is `scorer.dtype: bfloat16`; whole
towers in bfloat16 and float16. `score_gap` is the largest difference of 100 times the cosine from float32's, of
random towers, whose scores lie closer together than trained ones'.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from card import row, timed_s
from sizes import Size

_START_ID, _END_ID = 49406, 49407  # of CLIP's vocabulary
_SENTENCE_TOKENS = (15, 30)
_NUM_COMPARED = 64


def measure(*, device: str, size: Size, report: Any) -> None:
    import open_clip

    from actors.score.text_tower import TextTower

    config = size.clip if isinstance(size.clip, dict) else open_clip.get_model_config(size.clip)
    torch.manual_seed(0)
    with torch.device(device):
        model = open_clip.CLIP(**config).eval().requires_grad_(False)
    tower = TextTower(model)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    side = config["vision_cfg"]["image_size"]
    images = torch.randn(size.images, 3, side, side, device=device)
    tokens = _tokens(size.sentences, context=model.context_length).to(device)
    needed = tokens[:, : tower.num_needed(tokens)]
    rows = [row("positions", needed.shape[1], f"of {tokens.shape[1]}")]
    right = None
    for named, dtype, autocast, tf32 in (
        ("float32", torch.float32, False, False),
        ("tf32", torch.float32, False, True),
        ("bfloat16 autocast", torch.float32, True, False),
        ("bfloat16", torch.bfloat16, False, False),
        ("float16", torch.float16, False, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        try:
            model.float().load_state_dict(original)
            model.to(dtype)
            pixels = images.to(dtype)
            scope = torch.autocast(device, dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
            with torch.inference_mode(), scope:
                scores = _scores(model.encode_image(pixels), tower.encode(needed))
                right = scores if right is None else right
                turns = {
                    "images_per_s": (len(images), lambda pixels=pixels: model.encode_image(pixels)),
                    "sentences_per_s": (len(tokens), lambda: tower.encode(needed)),
                    "padded_sentences_per_s": (len(tokens), lambda: model.encode_text(tokens)),
                }
                for what, (number, turn) in turns.items():
                    took_s = timed_s(turn, device=device, repeats=max(2, size.repeats // 2), warm_ups=1)
                    rows.append(row(f"{what} [{named}]", number / took_s, f"a second, {number} at once"))
            rows.append(row(f"score_gap [{named}]", float((scores - right).abs().max()), "of 100 times the cosine"))
        except RuntimeError as error:  # a dtype that a tower or a CPU does not have
            rows.append(row(f"images_per_s [{named}]", None, "a second", why=" ".join(str(error).split())[:200]))
        report(rows=rows)


def _scores(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    left, right = (
        torch.nn.functional.normalize(rows[:_NUM_COMPARED].double(), dim=-1).cpu() for rows in (images, texts)
    )
    return 100.0 * left @ right.T


def _tokens(num: int, *, context: int) -> torch.Tensor:
    """[num, context] random words between start and end, 0 behind the end."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, _START_ID, (num, context), generator=random)
    lengths = torch.randint(*_SENTENCE_TOKENS, (num, 1), generator=random)
    order = torch.arange(context)[None]
    tokens[:, 0] = _START_ID
    tokens = torch.where(order < lengths, tokens, 0)
    return tokens.scatter_(1, lengths, _END_ID)
