"""open_clip as the reward sees it: 100 times the cosine of images with texts, nothing embedded twice.

Knows open_clip and its tokenizers; knows no actors and no trees.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csr_ray.data.prompts import load_image

if TYPE_CHECKING:
    import torch

_IMAGES_KEPT = 4096
_TEXTS_KEPT = 65536


class ClipModel:
    """An open_clip model on one device: 100 times the cosine of images with texts. Not thread-safe."""

    def __init__(self, model: str, *, dtype: str, device: str) -> None:
        import open_clip
        import torch

        self._torch = torch
        self._device = device
        name, _, pretrained = model.partition("/")
        folder = Path(model)
        where = {"model_name": f"local-dir:{folder}"} if folder.is_dir() else {"model_name": name}
        if not folder.is_dir() and pretrained:
            where["pretrained"] = pretrained
        self._model, _, self._transform = open_clip.create_model_and_transforms(**where, device=device)
        self._model.eval().requires_grad_(False)
        self._autocast = dtype == "bfloat16"
        self._tokenizer = open_clip.get_tokenizer(where["model_name"])
        self._context = int(getattr(self._tokenizer, "context_length", 77) or 77)
        self._images: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._texts: OrderedDict[str, tuple[torch.Tensor, bool]] = OrderedDict()
        self._num_images = self._num_texts = 0

    def take_encodes(self) -> tuple[int, int]:
        """Images and texts embedded since the last call."""
        taken = self._num_images, self._num_texts
        self._num_images = self._num_texts = 0
        return taken

    def scores(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[float], list[bool]]:
        """For each (image path, text): 100 cos, and whether the text was cut at the context length."""
        self._embed_images([image for image, _ in pairs])
        self._embed_texts([text for _, text in pairs])
        images = self._torch.stack([self._images[image] for image, _ in pairs])
        texts = self._torch.stack([self._texts[text][0] for _, text in pairs])
        scores = (100.0 * (images * texts).sum(dim=-1)).tolist()
        cut = [self._texts[text][1] for _, text in pairs]
        _shrink(self._images, limit=_IMAGES_KEPT)
        _shrink(self._texts, limit=_TEXTS_KEPT)
        return scores, cut

    def _embed_images(self, paths: Sequence[str]) -> None:
        missing = [path for path in dict.fromkeys(paths) if path not in self._images]
        if missing:
            batch = self._torch.stack([self._transform(load_image(path)) for path in missing]).to(self._device)
            rows = self._unit(self._model.encode_image, batch)
            self._images.update(zip(missing, rows, strict=True))
            self._num_images += len(missing)

    def _embed_texts(self, texts: Sequence[str]) -> None:
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if missing:
            tokens = self._tokenizer(missing).to(self._device)
            rows = self._unit(self._model.encode_text, tokens)
            cut = [self._is_cut(text, row) for text, row in zip(missing, tokens, strict=True)]
            self._texts.update(zip(missing, zip(rows, cut, strict=True), strict=True))
            self._num_texts += len(missing)

    def _unit(self, encode: Any, batch: torch.Tensor) -> torch.Tensor:
        device_type = self._device.split(":")[0]
        with (
            self._torch.inference_mode(),
            self._torch.autocast(device_type, dtype=self._torch.bfloat16, enabled=self._autocast),
        ):
            rows = encode(batch)
        # In double precision from here on: it costs nothing beside a tower, and leaves of the score's rounding only
        # the tower's own (2e-7 of the score, from one batch to another).
        return self._torch.nn.functional.normalize(rows.double(), dim=-1)

    def _is_cut(self, text: str, tokens: torch.Tensor) -> bool:
        """A text that fills the whole context and does not fit is cut; shorter ones are padded and cannot be."""
        if int((tokens != 0).sum()) < self._context:
            return False
        encoder = getattr(self._tokenizer, "encode", None)
        if encoder is not None:
            return len(encoder(text)) + 2 > self._context
        hugging_face = getattr(self._tokenizer, "tokenizer", None)
        return hugging_face is not None and len(hugging_face(text)["input_ids"]) > self._context


def _shrink(cache: OrderedDict[str, Any], *, limit: int) -> None:
    while len(cache) > limit:
        cache.popitem(last=False)
