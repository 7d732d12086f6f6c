"""open_clip as the reward sees it: 100 times the cosine of images with texts.

Embeddings are cached, so nothing is embedded twice while it stays in a cache. Knows open_clip and its tokenizers;
knows no actors and no trees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from csr_ray.data.pictures import load_picture
from csr_ray.errors import ConfigError
from csr_ray.policy.clip_source import clip_source
from csr_ray.records import Picture

if TYPE_CHECKING:
    import torch

_IMAGES_KEPT = 4096
_TEXTS_KEPT = 65536


def _tokenizer(name: str) -> Any:
    """A model's tokenizer, without Python of its author's, which its config could ask for."""
    import open_clip

    try:
        return open_clip.get_tokenizer(name, trust_remote_code=False)
    except TypeError:  # open_clip's own tokenizer, which has no such argument and reads no code
        return open_clip.get_tokenizer(name)


class ClipModel:
    """An open_clip model on one device, with caches of its embeddings. Not thread-safe.

    Args:
        model: as `scorer.model`, see `csr_ray.policy.clip_source`.
        dtype: "float32"; "tf32" for float32 whose products a GPU rounds to 10 bits (the CPU does not); or "bfloat16"
            for autocast of the towers.
        device: torch's name of it.

    Raises:
        ConfigError: the model cannot be loaded, or its scores would not be its own.
    """

    def __init__(self, model: str, *, dtype: str, device: str) -> None:
        source = clip_source(model)

        import open_clip
        import torch

        from actors.score.text_tower import TextTower

        self._torch = torch
        self._device = device
        # Of the whole process. torch's own default lets convolutions, here the image tower's patches, round to TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
        try:
            # Unlike create_model, it raises where no weights are found.
            self._model, self._transform = open_clip.create_model_from_pretrained(
                source.name, source.weights, device=device, weights_only=True
            )
            self._tokenizer = _tokenizer(source.name)
        except Exception as error:  # of many kinds: the hub's, the file's, torch's
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            raise ConfigError(f"scorer.model = {model!r}: open_clip cannot load it: {reason}") from error
        self._model.eval().requires_grad_(False)
        self._text_tower = TextTower(self._model)
        self._autocast = dtype == "bfloat16"
        self._context = int(getattr(self._tokenizer, "context_length", 77) or 77)
        self._images: LRUCache[Picture, torch.Tensor] = LRUCache(_IMAGES_KEPT)
        self._texts: LRUCache[str, tuple[torch.Tensor, bool]] = LRUCache(_TEXTS_KEPT)
        self._num_images = self._num_texts = 0

    def take_encodes(self) -> tuple[int, int]:
        """How many images and how many texts were embedded since the last call."""
        taken = self._num_images, self._num_texts
        self._num_images = self._num_texts = 0
        return taken

    def nats(self) -> float:
        """What a cosine of 1 is in the model's logits: the scale that it was trained with, 100 for OpenAI's.

        Raises:
            ConfigError: it has none, or one that is no positive number.
        """
        scale = getattr(self._model, "logit_scale", None)
        nats = math.nan if scale is None else float(scale.double().exp())
        if not (math.isfinite(nats) and nats > 0):
            raise ConfigError(
                f"reward.image_unit = nats: the logit scale of scorer.model is {nats}, which is no positive number; "
                "set reward.image_unit=points, or take another scorer.model"
            )
        return nats

    def scores(self, pairs: Sequence[tuple[Picture, str]]) -> tuple[list[float], list[bool]]:
        """For each (picture, text): 100 times the cosine, and whether the text was cut at the context length."""
        image_rows = self._image_rows([image for image, _ in pairs])
        text_rows = self._text_rows([text for _, text in pairs])
        images = self._torch.stack([image_rows[image] for image, _ in pairs])
        texts = self._torch.stack([text_rows[text][0] for _, text in pairs])
        scores = (100.0 * (images * texts).sum(dim=-1)).tolist()
        return scores, [text_rows[text][1] for _, text in pairs]

    def _image_rows(self, pictures: Sequence[Picture]) -> dict[Picture, torch.Tensor]:
        """The embedding of each image, not read from the cache later: a batch may be larger than the cache."""
        known = {picture: self._images[picture] for picture in dict.fromkeys(pictures) if picture in self._images}
        missing = [picture for picture in dict.fromkeys(pictures) if picture not in known]
        if not missing:
            return known
        batch = self._torch.stack([self._transform(load_picture(picture)) for picture in missing])
        new = dict(zip(missing, self._unit(self._model.encode_image, batch), strict=True))
        self._images.update(new)
        self._num_images += len(new)
        return known | new

    def _text_rows(self, texts: Sequence[str]) -> dict[str, tuple[torch.Tensor, bool]]:
        """The embedding of each text, and whether it was cut."""
        known = {text: self._texts[text] for text in dict.fromkeys(texts) if text in self._texts}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if not missing:
            return known
        tokens = self._tokenizer(missing)
        cut = [self._is_cut(text, row) for text, row in zip(missing, tokens, strict=True)]
        tokens = tokens[:, : self._text_tower.num_needed(tokens)]
        new = dict(zip(missing, zip(self._unit(self._text_tower.encode, tokens), cut, strict=True), strict=True))
        self._texts.update(new)
        self._num_texts += len(new)
        return known | new

    def _unit(self, encode: Any, batch: torch.Tensor) -> torch.Tensor:
        """Unit rows of a batch that lies on the CPU; they do, too, so that the caches take no GPU memory."""
        on_gpu = self._device != "cpu"
        with (
            self._torch.inference_mode(),
            self._torch.autocast(self._device.split(":")[0], dtype=self._torch.bfloat16, enabled=self._autocast),
        ):
            # Only from pinned memory does a copy not hold up the thread that launches the tower.
            rows = encode(batch.pin_memory().to(self._device, non_blocking=True) if on_gpu else batch)
        # In double precision from here on: it costs nothing beside a tower, and leaves of the score's rounding only
        # the tower's own (2e-7 of the score, from one batch to another, in float32).
        return self._torch.nn.functional.normalize(rows.cpu().double(), dim=-1)

    def _is_cut(self, text: str, tokens: torch.Tensor) -> bool:
        """Whether a text was cut: it fills the whole context, and its tokens do not fit into it."""
        if int((tokens != 0).sum()) < self._context:
            return False
        encoder = getattr(self._tokenizer, "encode", None)
        if encoder is not None:
            return len(encoder(text)) + 2 > self._context
        hugging_face = getattr(self._tokenizer, "tokenizer", None)
        return hugging_face is not None and len(hugging_face(text)["input_ids"]) > self._context
