"""A task of lmms-eval made of local files: the questions of the embedded world, asked and marked offline."""

from __future__ import annotations

import json
from pathlib import Path

NAME = "world_yes_no"

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
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_RULES = '''\
"""Called by lmms-eval."""

from PIL import Image


def picture(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["text"]


def marks(doc, results):
    return {"accuracy": float(results[0].strip().lower().startswith(doc["label"]))}
'''


def write_task(folder: Path, *, heldout: Path, num: int) -> Path:
    """A folder for --tasks-dir with the first `num` questions of a world's heldout folder."""
    folder.mkdir(parents=True)
    rows = [json.loads(line) for line in (heldout / "questions.jsonl").read_text().splitlines()[:num]]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps({**row, "image": str(heldout / row["image"])}) + "\n" for row in rows))
    (folder / f"{NAME}.yaml").write_text(_TASK.format(name=NAME, data=data))
    (folder / f"{NAME}_rules.py").write_text(_RULES)
    return folder
