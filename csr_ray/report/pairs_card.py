"""The card of a data set of a run's pairs, or of its single answers: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from csr_ray.config.schema import Config
from csr_ray.records import JsonDict
from csr_ray.report.cards import (
    THIS_FOLDER,
    base_in_words,
    card_template,
    facts_in,
    header_of,
    methods_in,
    phase_rows,
    rounds_in,
    sealed,
    settings_in,
)
from csr_ray.report.charts import size_in_words
from csr_ray.report.figures import number
from csr_ray.store.data_set import Written

PAIRS: Final = "pairs"
ANSWERS: Final = "answers"
# Upper ends of the hub's size categories, in rows.
_SIZES: Final = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
)  # fmt: skip
_LARGEST: Final = "n>10M"
_COLUMNS: Final[Mapping[str, tuple[tuple[str, str, str], ...]]] = {
    PAIRS: (
        ("id", "string", "the prompt's name; a prompt may have a row in every round"),
        ("image", "Image", "the picture that was asked about"),
        ("prompt", "list of messages", "the question, as one message of the user"),
        ("chosen, rejected", "list of messages", "the answers, each as one message of the assistant"),
        ("chosen_reward, rejected_reward", "float64", "what the run's judge made of each; more is better"),
        ("chosen_logp, rejected_logp", "float64", "log-probability of each under the policy that gave it, in nats"),
        ("chosen_ids, rejected_ids", "list of int32", "the answers as tokens of the base model"),
        ("chosen_nodes, rejected_nodes", "list of int32", "the nodes of the rollout that make up each answer"),
    ),
    ANSWERS: (
        ("id", "string", "the prompt's name; a prompt may have a row in every round"),
        ("image", "Image", "the picture that was asked about"),
        ("prompt", "list of messages", "the question, as one message of the user"),
        ("answer", "list of messages", "the answer to be imitated, as one message of the assistant"),
        ("weight", "float64", "how much the answer counts in training"),
        ("reward", "float64", "what the run's judge made of it; more is better"),
        ("logp", "float64", "its log-probability under the policy that gave it, in nats"),
        ("answer_ids", "list of int32", "the answer as tokens of the base model"),
        ("answer_nodes", "list of int32", "the nodes of the rollout that make up the answer"),
        ("image_view", "string", "the view of the picture that was trained on; null: the picture itself"),
    ),
}  # fmt: skip
_COLUMNS_OF_BOTH: Final = (
    ("policy_version", "int32", "which policy answered: 0 is the base model"),
    ("method", "string", "the method that made the row"),
    ("seed", "int64", "seed of the prompt's rollout"),
    ("image_change", "string", "how the picture was changed before it was shown, such as by noise; null: not at all"),
    ("image_seed", "int64", "seed of that change"),
    ("round", "int32", "the round that made the row, from 1"),
    ("phase", "string", "the phase of that round; `main` where there is only one"),
)


def pairs_card(
    summary: Mapping[str, Any], *, config: Config, run_name: str, written: Mapping[str, Written], is_embedded: bool
) -> str:
    """The card of a data set.

    Args:
        summary: the content of summary.json, as far as there is one.
        config: as the user gave it (config.yaml).
        written: what there is of each kind, `PAIRS` or `ANSWERS`; the first is what is loaded by default.
        is_embedded: every picture stands in the files.
    """
    indices = {index for one in written.values() for index, _ in one.by_phase}
    entries = [entry for entry in rounds_in(summary) if number(entry.get("round")) in indices]
    methods = methods_in(config, entries=entries)
    names = [name for name, _ in methods]
    text = card_template("pairs_card.md.j2").render(
        header=header_of(_metadata(written=written, names=names)),
        run_name=run_name,
        this_folder=THIS_FOLDER,
        base=base_in_words(config, summary=summary),
        kinds={
            kind: {
                "rows": one.num_rows,
                "size": size_in_words(one.num_bytes),
                "files": len(one.files),
                "columns": (*_COLUMNS[kind], *_COLUMNS_OF_BOTH),
                "left_out": dict(one.left_out),
            }
            for kind, one in written.items()
        },
        num_pictures=sum(one.num_pictures for one in written.values()),
        is_embedded=is_embedded,
        by_phase=[
            (index + 1, phase, num, kind)
            for kind, one in written.items()
            for (index, phase), num in sorted(one.by_phase.items())
        ],
        methods=methods,
        phases=phase_rows(entries),
        facts=facts_in(config),
        settings=settings_in(config),
        has_scorer=config.scorer is not None,
    )
    return sealed(text)


def _metadata(*, written: Mapping[str, Written], names: list[str]) -> JsonDict:
    num_rows = sum(one.num_rows for one in written.values())
    is_one = len(written) == 1
    header: JsonDict = {
        "task_categories": ["image-text-to-text"],
        "tags": list(dict.fromkeys(["csr_ray", *names, *(["preference", "dpo"] if PAIRS in written else ["sft"])])),
        "size_categories": [next((name for most, name in _SIZES if num_rows < most), _LARGEST)],
        "configs": [
            {
                "config_name": "default" if is_one else kind,
                "data_files": [{"split": "train", "path": f"{one.files[0].rsplit('/', 1)[0]}/train-*.parquet"}],
                **({} if is_one or position else {"default": True}),
            }
            for position, (kind, one) in enumerate(written.items())
        ],
    }
    return header
