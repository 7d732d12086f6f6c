"""From training examples to the batch that TRL's DPO trainer works on, without re-tokenising any answer.

What was sampled is what is trained: the answers' token ids are used as they came from the engine, only the prompt
goes through the model's own processor (`csr_ray.data.chat`). Knows processors and batch layout; knows nothing of
trainers.

Legend: P is the number of pairs, T the length of the longest [prompt | answer] of the batch, in tokens. Rows 0..P-1
hold the chosen answers, rows P..2P-1 the rejected ones. Of examples with a single answer, which all examples of a
batch are or none, there are rows 0..P-1 alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from csr_ray.data.chat import needs_special_tokens, prompt_ids, prompt_text
from csr_ray.errors import PicturesGone
from csr_ray.records import Ask, Example, Picture
from csr_ray.training.shared_prefix import PairTokens, lay_out, pack

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import ProcessorMixin

LoadPicture = Callable[[Picture], "Image"]
Positions = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""From a processor's output for P prompts to position ids [axes, P, T], by the model's own position scheme."""

# Of these keys a processor returns one value for each token; everything else that it returns belongs to the images.
_TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


UNREADABLE = "unreadable_image"
# So many pictures that cannot be opened before any could are not broken one by one.
_MANY_UNREADABLE = 16


class PairJudge:
    """Says of a pair why it cannot be trained on.

    There are four reasons: its picture cannot be opened; prompt, image and the longer answer have more than
    `max_length` tokens together; an answer is empty; or an answer has the image token in it, which a model may sample
    but cannot be trained on, because it has no image features for it. How many tokens an image takes depends only on
    its size, so one blank image of each size goes through the processor to count them.

    The pictures are not decoded: the engine and the scorer have, before there was a pair. One that is deleted or
    emptied since then is found here; one that is damaged since then ends the training with an error that names it.

    Args:
        picture_size: width and height of a picture, in pixels; raises ValueError where it cannot be opened.

    Raises:
        PicturesGone: by calls, when a picture cannot be opened, and neither can the last one that could, or when many
            in a row cannot be opened and none could before: no pair is to be dropped because a mount is away.
    """

    def __init__(
        self, *, processor: ProcessorMixin, picture_size: Callable[[Picture], tuple[int, int]], max_length: int
    ) -> None:
        self._processor = processor
        self._picture_size = picture_size
        self._max_length = max_length
        self._image_token = getattr(processor, "image_token_id", None)
        self._last_opened: Picture | None = None
        self._num_unreadable = 0
        self._image_tokens: dict[tuple[int, int], int] = {}
        self._text_tokens: dict[str, int] = {}

    def __call__(self, pair: Example) -> str | None:
        """Return the reason, a short name by which dropped pairs are counted, or None if the pair can be used."""
        try:
            size = self._picture_size(pair.ask.picture)
        except ValueError as error:
            self._num_unreadable += 1
            if self._last_opened is not None:
                if self._last_opened.path != pair.ask.picture.path:  # which cannot vouch for itself
                    self._look_at_the_last()
            elif self._num_unreadable >= _MANY_UNREADABLE:
                raise PicturesGone.all_of_them(reason=error) from error
            return UNREADABLE
        self._last_opened = pair.ask.picture
        answers = [target.token_ids for target in pair.targets]
        if not all(answers):
            return "empty_answer"
        if any(self._image_token in answer for answer in answers):
            return "image_token_in_answer"
        if size not in self._image_tokens:
            self._image_tokens[size] = _num_extra_tokens(self._processor, size=size)
        if pair.ask.text not in self._text_tokens:
            self._text_tokens[pair.ask.text] = len(prompt_ids(self._processor, question=pair.ask.text))
        prompt_length = self._text_tokens[pair.ask.text] + self._image_tokens[size]
        if prompt_length + max(len(answer) for answer in answers) > self._max_length:
            return "too_long"
        return None

    def _look_at_the_last(self) -> None:
        assert self._last_opened is not None
        try:
            self._picture_size(self._last_opened)
        except ValueError as error:
            raise PicturesGone.since(self._last_opened.path, reason=error) from error


def pair_rows(pairs: Sequence[Example]) -> list[dict[str, Any]]:
    """The pairs as rows of a `datasets.Dataset`, which `PairCollator` takes back in batches."""
    return [pair_row(pair, index=index) for index, pair in enumerate(pairs)]


def pair_row(pair: Example, *, index: int) -> dict[str, Any]:
    """The row of one pair, or of one answer, which is the chosen one then, without a rejected one.

    By the keys `image`, `prompt`, `chosen` and `rejected` TRL recognises vision pairs.
    """
    picture, chosen = pair.ask.picture, pair.preferred
    row = {
        "index": index,
        "id": pair.id,
        "image": picture.path,
        "change": picture.change,
        "change_seed": picture.seed,
        "view": pair.view,
        "prompt": pair.ask.text,
        "chosen": list(chosen.token_ids),
    }
    if pair.num_answers == 1:
        return row | {"rejected": [], "weight": pair.weight}
    rejected = pair.rejected
    return row | {
        "rejected": list(rejected.token_ids),
        "chosen_logp": chosen.logp,
        "rejected_logp": rejected.logp,
    }


def image_part(prompts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a processor's output belongs to the images, in the processor's own layout."""
    return {key: value for key, value in prompts.items() if key not in _TOKEN_KEYS}


def row_ask(row: Mapping[str, Any]) -> Ask:
    """The question of a row that `pair_row` made, with its picture."""
    picture = Picture(path=row["image"], change=row["change"], seed=row["change_seed"])
    return Ask(picture=picture, text=row["prompt"])


@dataclass(frozen=True, kw_only=True)
class PairCollator:
    """Rows of `pair_rows` to one batch.

    Returns a dict with
        input_ids, attention_mask, completion_mask: [2P, T], padded on the right; completion_mask is 1 on the tokens
            of an answer and 0 elsewhere;
        pixel_values and whatever else the processor makes of images: each image processed once, then repeated for the
            rejected half, in the processor's own layout;
        token_type_ids, mm_token_type_ids: [2P, T] if the processor makes them, 0 on answers;
        ref_chosen_logps, ref_rejected_logps: [P] float32, the log-probs (nats, summed over an answer's tokens) that
            the engine returned while sampling, NaN for an answer that it has not given;
        weights: [P] float32, of single answers, in the place of the log-probs;
        pair_index: list of P ints, the rows' `index`; no tensor, because reading one back from a GPU waits for it.

    Attributes:
        threads: how many pictures of a batch are read and decoded at a time.
    """

    processor: ProcessorMixin
    load_picture: LoadPicture
    threads: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompts = self.prompts([row_ask(row) for row in rows])
        answers = [row["chosen"] for row in rows] + [row["rejected"] for row in rows if row["rejected"]]
        batch: dict[str, Any] = self.batch(prompts, answers=answers)
        batch |= _references(rows)
        batch["pair_index"] = [row["index"] for row in rows]
        return batch

    def prompts(self, asks: Sequence[Ask]) -> Mapping[str, torch.Tensor]:
        """The processor's output for some prompts, image tokens expanded; token keys are [P, longest prompt]."""
        texts = [prompt_text(self.processor, question=ask.text) for ask in asks]
        with ThreadPoolExecutor(max_workers=self.threads) as pool:
            images = list(pool.map(self.load_picture, [ask.picture for ask in asks]))
        return self.processor(
            text=texts,
            images=[[image] for image in images],
            padding=True,
            add_special_tokens=needs_special_tokens(self.processor.tokenizer, text=texts[0]),
            return_tensors="pt",
        )

    def batch(
        self, prompts: Mapping[str, torch.Tensor], *, answers: Sequence[Sequence[int]]
    ) -> dict[str, torch.Tensor]:
        """Put each answer behind its prompt, one row an answer: tensors as in `PairCollator`.

        With k times as many answers as prompts, the whole list of prompts is repeated k times.
        """
        num_prompts = len(prompts["input_ids"])
        repeats, rest = divmod(len(answers), num_prompts)
        assert rest == 0, (len(answers), num_prompts)
        kept = [mask.bool() for mask in prompts["attention_mask"]]
        padding = {"input_ids": self._pad_token_id(), "attention_mask": 0, "completion_mask": 0}
        sequences: dict[str, list[torch.Tensor]] = {key: [] for key in padding}
        for key in prompts:
            if key in _TOKEN_KEYS and key not in padding:
                padding[key], sequences[key] = 0, []
        for row, answer in enumerate(answers):
            source = row % num_prompts
            for key, column in sequences.items():
                if key == "completion_mask":
                    head = torch.zeros(int(kept[source].sum()), dtype=torch.long)
                else:
                    head = prompts[key][source][kept[source]]
                tail = _answer_part(key, answer=answer)
                column.append(torch.cat([head, tail.to(head.dtype)]))
        batch = {
            key: torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=padding[key])
            for key, column in sequences.items()
        }
        for key, value in prompts.items():
            if key not in _TOKEN_KEYS:
                batch[key] = torch.cat([value] * repeats)
        return batch

    def _pad_token_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


@dataclass(frozen=True, kw_only=True)
class SharedPrefixCollator(PairCollator):
    """Rows of `pair_rows` to one batch in which every prompt and image stands once
    (`csr_ray.training.shared_prefix`).

    Returns a dict with
        input_ids, attention_mask, completion_mask: [2P, 1 + A], the prompt's last token and the answer, as TRL's loss
            wants them; the pairs may stand in another order than the rows;
        ref_chosen_logps, ref_rejected_logps or weights, and pair_index: [P] as in `PairCollator`;
        shared: what the model gets, a dict of input_ids, positions, pair, branch, sources (see `SharedPrefixLayout`),
            targets ([N], the token that each source predicts), num_pairs (an int), kinds (a dict) and images (a dict
            of what the processor made of them, each image once).

    Attributes:
        positions: gives the position ids of the prompts; None where positions simply count the tokens.
        budget: how many tokens a row may hold, see `csr_ray.training.shared_prefix.pack`; None: one pair a row.
        multiple: rows are padded to the next multiple of so many tokens.
    """

    positions: Positions | None = None
    budget: int | None = None
    multiple: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompts = self.prompts([row_ask(row) for row in rows])
        pairs = self._pair_tokens(prompts, rows=rows)
        images = image_part(prompts)
        counts = _rows_per_image(images, num_images=len(rows))
        packed = pack([pair.num_tokens for pair in pairs], budget=self.budget, keep_order=counts is None)
        order = [item for row in packed for item in row]
        if counts is not None and order != sorted(order):
            images = {key: _reordered(value, counts=counts[key], order=order) for key, value in images.items()}
        layout = lay_out(
            [[pairs[item] for item in row] for row in packed],
            pad_token_id=self._pad_token_id(),
            multiple=self.multiple,
        )
        num_answers = len(layout.answers) // len(pairs)
        last = torch.stack([pairs[item].prefix[-1] for item in order]).repeat(num_answers)
        is_answer = layout.is_answer.long()
        ones, zeros = torch.ones_like(last), torch.zeros_like(last)
        answers = layout.answers.masked_fill(~layout.is_answer, self._pad_token_id())
        return {
            "input_ids": torch.cat([last[:, None], answers], dim=1),
            "attention_mask": torch.cat([ones[:, None], is_answer], dim=1),
            "completion_mask": torch.cat([zeros[:, None], is_answer], dim=1),
            **_references([rows[item] for item in order]),
            "pair_index": [rows[item]["index"] for item in order],
            "shared": {
                "input_ids": layout.input_ids,
                "positions": layout.positions,
                "pair": layout.pair,
                "branch": layout.branch,
                "sources": layout.sources,
                "targets": layout.answers[layout.is_answer],
                "num_pairs": len(pairs),
                "kinds": dict(layout.kinds),
                "images": images,
            },
        }

    def _pair_tokens(
        self, prompts: Mapping[str, torch.Tensor], *, rows: Sequence[Mapping[str, Any]]
    ) -> list[PairTokens]:
        positions = self.positions(prompts) if self.positions is not None else None
        kinds = [key for key in prompts if key in _TOKEN_KEYS and key not in ("input_ids", "attention_mask")]
        pairs = []
        for index, row in enumerate(rows):
            kept = prompts["attention_mask"][index].bool()
            prefix = prompts["input_ids"][index][kept]
            pairs.append(
                PairTokens(
                    prefix=prefix,
                    positions=torch.arange(len(prefix))[None] if positions is None else positions[:, index, kept],
                    kinds={key: prompts[key][index][kept] for key in kinds},
                    chosen=row["chosen"],
                    rejected=row["rejected"],
                )
            )
        return pairs


def _references(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """What stands beside the answers of some rows: the reference's log-probs of pairs, the weights of single ones."""
    if not rows[0]["rejected"]:
        return {"weights": torch.tensor([row["weight"] for row in rows], dtype=torch.float32)}
    logps = {side: [row[f"{side}_logp"] for row in rows] for side in ("chosen", "rejected")}
    return {
        f"ref_{side}_logps": torch.tensor(
            [math.nan if logp is None else logp for logp in of_side], dtype=torch.float32
        )
        for side, of_side in logps.items()
    }


def _rows_per_image(images: Mapping[str, torch.Tensor], *, num_images: int) -> dict[str, list[int]] | None:
    """For each tensor, how many of its rows belong to each image; None where that cannot be told."""
    counts = {}
    for key, value in images.items():
        if len(value) == num_images:
            counts[key] = [1] * num_images
        elif key == "pixel_values" and "image_grid_thw" in images:
            counts[key] = images["image_grid_thw"].prod(dim=1).tolist()
        else:
            return None
    return counts


def _reordered(value: torch.Tensor, *, counts: Sequence[int], order: Sequence[int]) -> torch.Tensor:
    parts = value.split(list(counts))
    return torch.cat([parts[item] for item in order])


def _answer_part(key: str, *, answer: Sequence[int]) -> torch.Tensor:
    if key == "input_ids":
        return torch.tensor(list(answer), dtype=torch.long)
    fill = 1 if key in ("attention_mask", "completion_mask") else 0
    return torch.full((len(answer),), fill, dtype=torch.long)


def _num_extra_tokens(processor: ProcessorMixin, *, size: tuple[int, int]) -> int:
    from PIL import Image

    collator = PairCollator(processor=processor, load_picture=lambda _: Image.new("RGB", size))
    expanded = collator.prompts([Ask(picture=Picture(path=""), text="a")])["input_ids"].shape[1]
    return expanded - len(prompt_ids(processor, question="a"))
