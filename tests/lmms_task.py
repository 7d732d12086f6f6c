"""A task of lmms-eval made of local files: yes/no questions of the embedded world, marked by lmms-eval's own POPE."""

from __future__ import annotations

import json
from pathlib import Path

NAME = "world_yes_no"
METRICS = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")

_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function {name}_rules.picture
doc_to_text: !function {name}_rules.question
doc_to_target: label
process_results: !function {name}_rules.marks
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
metric_list:
{metrics}
metadata:
  version: 1.0
"""
_METRIC = """\
  - metric: pope_{metric}
    aggregation: !function {name}_rules.pope_aggregate_{metric}
    higher_is_better: true
"""
_RULES = '''\
"""Called by lmms-eval, whose own marks these are."""

from lmms_eval.tasks.pope.utils import (
    pope_aggregate_accuracy,
    pope_aggregate_f1_score,
    pope_aggregate_precision,
    pope_aggregate_recall,
    pope_aggregate_yes_ratio,
    pope_process_results,
)
from PIL import Image


def picture(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["text"]


def marks(doc, results):
    return pope_process_results({**doc, "answer": doc["label"]}, results)
'''


def write_task(folder: Path, *, heldout: Path, num: int) -> Path:
    """A folder for --tasks-dir with the first `num` questions of a world's heldout folder."""
    folder.mkdir(parents=True)
    rows = [json.loads(line) for line in (heldout / "questions.jsonl").read_text().splitlines()[:num]]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps({**row, "image": str(heldout / row["image"])}) + "\n" for row in rows))
    metrics = "".join(_METRIC.format(name=NAME, metric=metric) for metric in METRICS).rstrip()
    (folder / f"{NAME}.yaml").write_text(_TASK.format(name=NAME, data=data, metrics=metrics))
    (folder / f"{NAME}_rules.py").write_text(_RULES)
    return folder
