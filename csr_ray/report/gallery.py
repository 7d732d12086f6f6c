"""The pairs the page shows, as plain values for its script: sentences with their scores, and small images.

Text goes out as JSON strings that the page sets as text, never as markup. Knows nothing of charts or HTML.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from csr_ray.data.images import load_image
from csr_ray.report.figures import number, section
from csr_ray.report.read import NodeRows, RoundData, Run

MAX_THUMBNAIL_PX = 160
PIXELATED_BELOW_PX = 97  # smaller images are shown enlarged, with their pixels kept sharp
MAX_TEXT_CHARS = 4000
NUM_COLOURS = 9
EMBEDDED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True, kw_only=True)
class RewardScale:
    """Maps a sentence's reward to one of `NUM_COLOURS` colours, over the run's 5th to 95th percentile."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def colour(self, reward: float) -> int:
        share = (reward - self.low) / (self.high - self.low)
        return min(NUM_COLOURS - 1, max(0, int(share * NUM_COLOURS)))


def reward_scale(rewards: np.ndarray) -> RewardScale | None:
    """The scale of a run from all its sentence rewards [n]; None without any."""
    if not len(rewards):
        return None
    low, high = (float(value) for value in np.percentile(rewards, [5, 95]))
    return RewardScale(low=low, high=high) if high > low else RewardScale(low=low - 0.5, high=low + 0.5)


def gallery(run: Run, *, scale: RewardScale | None) -> dict[str, Any]:
    """`{"pairs": [...], "images": [...]}`, ready for JSON; a pair's `image` is a position in `images` or None."""
    thumbnails = Thumbnails(folders=image_folders(run))
    pairs = [_pair(row, of=data, scale=scale, thumbnails=thumbnails) for data in run.rounds for row in data.shown]
    return {"pairs": pairs, "images": thumbnails.images}


class Thumbnails:
    """Small copies of images as data URIs, each stored once however many pairs use it."""

    def __init__(self, *, folders: Sequence[Path]) -> None:
        self.images: list[dict[str, Any]] = []
        self._folders = folders
        self._positions: dict[str, int | None] = {}

    def add(self, image: object) -> int | None:
        """Position in `images` of a path, encoded bytes or `{"bytes", "path"}`; None if it cannot be shown."""
        content, path = _content_and_path(image)
        key = hashlib.sha1(content, usedforsecurity=False).hexdigest() if content else f"path {path}"
        if key not in self._positions:
            encoded = self._encode(content, path=path)
            self._positions[key] = None if encoded is None else len(self.images)
            if encoded is not None:
                self.images.append(encoded)
        return self._positions[key]

    def _encode(self, content: bytes | None, *, path: str | None) -> dict[str, Any] | None:
        try:
            image = self._load(path) if content is None else _decode(content)
        except ValueError:
            return None  # a picture that cannot be read must not cost the report
        return None if image is None else _thumbnail(image)

    def _load(self, path: str | None) -> Image.Image | None:
        if not path:
            return None
        if "://" in path:
            return load_image(path)
        places = (folder / path for folder in (Path(), *self._folders))
        found = next((place for place in places if place.is_file()), None)
        return None if found is None else load_image(str(found))


def _decode(content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=EMBEDDED_FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders let anything escape on damaged bytes
        raise ValueError(f"image in the file cannot be decoded: {error}") from error


def _thumbnail(image: Image.Image) -> dict[str, Any]:
    tiny = max(image.size) < PIXELATED_BELOW_PX
    small = image.copy()
    small.thumbnail((MAX_THUMBNAIL_PX, MAX_THUMBNAIL_PX))
    buffer = io.BytesIO()
    if tiny:  # lossless, because enlarging shows what JPEG does to hard edges
        small.save(buffer, "PNG", optimize=True)
    else:
        small.save(buffer, "JPEG", quality=80, optimize=True)
    kind = "png" if tiny else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return {"uri": uri, "tiny": tiny}


def _content_and_path(image: object) -> tuple[bytes | None, str | None]:
    if isinstance(image, bytes):
        return image, None
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        return (content if isinstance(content, bytes) and content else None), (str(path) if path else None)
    return None, (image if isinstance(image, str) else None)


def image_folders(run: Run) -> list[Path]:
    """Where a relative name of a picture may start from."""
    data = section(run.config, key="data")
    images, prompts = data.get("images"), data.get("prompts")
    folders = [Path(images)] if isinstance(images, str) else []
    folders += [Path(prompts).parent] if isinstance(prompts, str) else []
    return [*folders, run.folder]


def _pair(
    row: Mapping[str, Any], *, of: RoundData, scale: RewardScale | None, thumbnails: Thumbnails
) -> dict[str, Any]:
    chosen_reward, rejected_reward = number(row.get("chosen_reward")), number(row.get("rejected_reward"))
    both = chosen_reward is not None and rejected_reward is not None
    return {
        "round": of.index,
        "id": _text(row.get("id")),
        "prompt": _text(row.get("prompt")),
        "image": thumbnails.add(row.get("image")),
        "margin": _rounded(chosen_reward - rejected_reward) if both else None,  # type: ignore[operator]
        "chosen": _answer(row, side="chosen", nodes=of.nodes, scale=scale),
        # There is none where answers are imitated.
        "rejected": None if "rejected" not in row else _answer(row, side="rejected", nodes=of.nodes, scale=scale),
    }


def _answer(row: Mapping[str, Any], *, side: str, nodes: NodeRows, scale: RewardScale | None) -> dict[str, Any]:
    text = _text(row.get(side))
    identifier = str(row.get("id"))
    path = [nodes.get((identifier, int(node))) for node in row.get(f"{side}_nodes") or ()]
    sentences = [_sentence(node, scale=scale) for node in path if node is not None]
    told = "".join("".join(sentence["text"].split()) for sentence in sentences)
    if None in path or not sentences or told != "".join(text.split()):
        # The tree does not tell this answer (another method's pair, a lost file): the text alone, without colours.
        sentences = [{"text": text}]
    return {
        "reward": _rounded(number(row.get(f"{side}_reward"))),
        "logp": _rounded(number(row.get(f"{side}_logp"))),
        "sentences": [sentence for sentence in sentences if sentence["text"].strip()],
    }


def _sentence(node: Mapping[str, Any], *, scale: RewardScale | None) -> dict[str, Any]:
    reward = number(node.get("reward"))
    return {
        "text": _text(node.get("text")),
        "self": _rounded(number(node.get("self_score"))),
        "image": _rounded(number(node.get("image_score"))),
        "reward": _rounded(reward),
        "logp": _rounded(number(node.get("logp"))),
        "tokens": len(node.get("token_ids") or ()) or None,
        "colour": None if reward is None or scale is None else scale.colour(reward),
    }


def _text(value: object) -> str:
    """A string as it is; a chat (list of messages) as the text of its messages, in order."""
    if isinstance(value, Mapping):
        return _text(value.get("content") if "content" in value else value.get("text"))
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, (_text(item) for item in value)))
    text = "" if value is None else str(value)
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
