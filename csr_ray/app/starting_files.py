"""The two files that `csr-ray init` writes: a commented config, and a prompt for every picture."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from csr_ray.app.starter import Choice, prompts_a_round
from csr_ray.data.gather import FoundPicture
from csr_ray.records import JsonDict

QUESTIONS: Final = (
    "Describe this image in detail.",
    "What is in this picture? Name everything that you see.",
    "Write a thorough description of this photo.",
    "What are the main things in this picture, and where are they?",
    "Explain what can be seen in this image.",
    "What is going on in this picture?",
)
"""Questions that ask for a description, in our own words: that is the kind of all prompts that CSR's authors released
(eleven wordings, one a picture)."""

_WIDTH: Final = 116
_MOST_BESIDE: Final = 48
# What stands behind a key on its line, by section and key.
_BESIDE: Final[Mapping[tuple[str, str], str]] = {
    ("run", "dir"): "everything the run makes; delete nothing in it while it runs",
    ("run", "rounds"): "a round generates, judges, trains and hands over; the paper has three",
    ("data", "prompts"): "a line a question: id, image, prompt; change it as you like, or give another file",
    ("data", "images"): "where the names of pictures in it start from",
    ("data", "per_round"): "prompts a round, taken in turn; null: all of them every round",
    ("policy", "model"): "the model to improve: a Hugging Face folder or hub id",
    ("policy", "max_model_len"): "longest sequence in tokens, the picture's included",
    ("scorer", "model"): "the CLIP that judges every sentence against the picture",
    ("search", "candidates"): "next sentences sampled for each live node of the tree",
    ("search", "width"): "nodes alive at a depth: width - keep_worst best ones, and the worst",
    ("search", "max_sentences"): "of an answer",
    ("train", "batch_size"): "pairs of an optimizer step",
    ("train", "micro_batch_size"): "pairs that lie in a GPU's memory at once",
    ("train", "gradient_checkpointing"): "activations are computed twice and not kept: less memory, a little slower",
    ("train", "lora_rank"): "with lora_alpha twice as much",
    ("train", "deepspeed_stage"): "ZeRO-3: the frozen weights are split among the workers",
    ("generators", "gpus"): "each engine is spread over so many GPUs",
    ("generators", "gpu_memory_utilization"): "share of a GPU's memory that an engine takes",
    ("cluster", "layout"): "who gets which GPU is worked out from those there are when the run starts",
    ("world", "enabled"): "builds the tiny models at the first run, and finds them in the cache then",
}
_ABOVE: Final[Mapping[str, str]] = {
    "search": "How the tree of sentences grows (docs/search.md). How much the picture counts against the policy's "
    "own opinion is reward.weight, 0.5 by default; a CLIP that errs often needs more of it (docs/reward.md).",
    "train": "When a round has been trained enough is found out by itself on pairs that are held out "
    "(docs/training.md).",
}
_NO_EVAL: Final = (
    "There is no section eval: nobody has said what is in these pictures, so there is nothing to measure by. What a "
    "round does to the answers is looked at all the same before it is handed over (section gate of `csr-ray "
    "config`), and `csr-ray ask` shows answers of all rounds side by side."
)


def prompt_rows(
    pictures: Sequence[FoundPicture], *, folder: str, questions: Sequence[str], each: int
) -> list[JsonDict]:
    """A row for every question that is asked: `id, image, prompt`.

    The questions are taken in turn, so every picture gets another one than the picture before it.

    Args:
        folder: which the pictures are below; their names are written from there.
        each: questions for a picture.
    """
    rows = []
    num = min(each, len(questions))
    for place, picture in enumerate(pictures):
        image = os.path.relpath(picture.path, folder)
        for number in range(num):
            question = questions[(place * num + number) % len(questions)]
            rows.append({"id": image if num == 1 else f"{image}#{number + 1}", "image": image, "prompt": question})
    return rows


def rows_as_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """As JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def common_folder(pictures: Sequence[FoundPicture]) -> str:
    """The innermost folder that all pictures are below."""
    return os.path.commonpath([os.path.dirname(picture.path) for picture in pictures])


def config_text(
    choice: Choice,
    *,
    folder: Path,
    prompts: Path,
    images: str,
    num_prompts: int,
    places: Sequence[str],
    notes: Sequence[str],
) -> str:
    """The commented config.

    Args:
        folder: that it is written into; the run's is a folder in it.
        prompts: the prompt file.
        images: folder that the pictures' names start from.
        notes: what a person should read before the run, a paragraph each.
    """
    sections: dict[str, Mapping[str, Any]] = {
        "run": {"dir": str(folder / "run"), "rounds": 3},
        "data": {"prompts": str(prompts), "images": images, "per_round": prompts_a_round(num_prompts)},
    }
    order = ("world", "policy", "scorer", "search", "train", "generators", "cluster")
    sections |= {name: choice.settings[name] for name in order if name in choice.settings}
    here = folder / "config.yaml"
    head = [
        f"Written by `csr-ray init` for {num_prompts:,} questions about pictures of {', '.join(places)}.",
        "",
        f"  csr-ray run {_word(here)} --dry-run",
        "      checks every path, and shows who runs on what and a sample of what will be asked",
        f"  csr-ray run {_word(here)}",
        "      the run; stop it when you like, the same command goes on where it was",
        "",
        "Every key with its default is listed by `csr-ray config`, and any can be set on the command line as "
        "key.sub=value.",
        "",
        f"Why this model ({choice.starter.name}):",
        *choice.why,
        *notes,
    ]
    parts = [_comment(head)]
    for name, keys in sections.items():
        above = _comment([_ABOVE[name]]) if name in _ABOVE and not choice.is_rehearsal else ""
        parts.append(above + _section(name, keys))
    parts.append(_comment([_NO_EVAL]))
    return "\n".join(parts)


def _comment(paragraphs: Sequence[str]) -> str:
    lines: list[str] = []
    for paragraph in paragraphs:
        if paragraph.startswith("  "):  # a command is not to be folded
            lines.append(paragraph)
        else:
            lines += textwrap.wrap(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _section(name: str, keys: Mapping[str, Any]) -> str:
    rows = [(f"  {key}: {_value(value)}", _BESIDE.get((name, key), "")) for key, value in keys.items()]
    width = max([len(row) for row, beside in rows if beside and len(row) <= _MOST_BESIDE], default=0)
    lines = [f"{name}:"]
    for row, beside in rows:
        line = f"{row:<{width}}  # {beside}" if beside else row
        # A long path has its comment above.
        lines += [line] if len(line) <= _WIDTH or not beside else [f"  # {beside}", row]
    return "".join(line + "\n" for line in lines)


def _value(value: object) -> str:
    """A plain value as YAML takes it, on one line whatever is in it."""
    if value is None:
        return "null"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()


def _word(path: Path) -> str:
    """A path as a shell takes it."""
    text = str(path)
    return text if all(part.isalnum() or part in "/._-+=@%" for part in text) else f"'{text}'"
