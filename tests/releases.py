"""Small releases of every benchmark with answers to them, as `csr-ray score-answers` takes both."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from csr_ray.evaluation.benchmarks.mmhal import TYPES

DATA = Path(__file__).parent / "data"
NUM = 40


def official(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "benchmarks" / f"{name}.json").read_text())
    return found


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def _world(folder: Path) -> tuple[Path, Path]:
    truth = [{"id": f"w{at}", "objects": [{"kind": "circle"}]} for at in range(NUM)]
    said = [{"id": f"w{at}", "text": "A circle." if at % 3 else "A star. A star."} for at in range(NUM)]
    return write_lines(folder / "said.jsonl", said), write_lines(folder / "truth.jsonl", truth)


def _chair(folder: Path) -> tuple[Path, Path]:
    truth = [{"id": at, "objects": ["dog", "cat"]} for at in range(NUM)]
    said = [
        {"id": at, "caption": ("A dog and two cars by a car.", "A dog.", "A dog and a cat.")[at % 3]}
        for at in range(NUM)
    ]
    return write_lines(folder / "said.jsonl", said), write_lines(folder / "truth.jsonl", truth)


def _pope(folder: Path) -> tuple[Path, Path]:
    """Two questions about an image, which are right or wrong together."""
    truth = [
        {
            "question_id": at,
            "image": f"{at // 2}.jpg",
            "text": f"Is there a {at}?",
            "label": "yes" if at % 2 else "no",
        }
        for at in range(NUM)
    ]
    said = [
        {"question_id": at, "text": "Yes" if at % 7 == 0 or (at % 2 == 1) == (at // 2 % 3 != 0) else "No"}
        for at in range(NUM)
    ]
    return write_lines(folder / "said.jsonl", said), write_lines(folder / "truth.jsonl", truth)


def pope_splits(folder: Path) -> tuple[Path, Path]:
    """POPE's own folder with LLaVA's question file, and LLaVA's answers."""
    found = json.loads(gzip.decompress((DATA / "official_pope_splits.json.gz").read_bytes()))
    for split, rows in found["labels"].items():
        write_lines(folder / "coco" / f"coco_pope_{split}.json", rows)
    write_lines(folder / "coco" / "llava_pope_test.jsonl", found["questions"])
    return write_lines(folder / "said.jsonl", found["answers"]), folder / "coco"


def _mme(folder: Path) -> tuple[Path, Path]:
    lines = official("mme")["lines"]
    for name, num_columns in (("said", 4), ("truth", 3)):
        (folder / name).mkdir()
        for subtask, rows in lines.items():
            cut = ["\t".join(row.split("\t")[:num_columns]) for row in rows]
            (folder / name / f"{subtask}.txt").write_text("\n".join(cut) + "\n")
    return folder / "said", folder / "truth"


def _scienceqa(folder: Path) -> tuple[Path, Path]:
    found = official("scienceqa")
    write_json(folder / "sqa" / "problems.json", found["problems"])
    write_json(folder / "sqa" / "pid_splits.json", {"test": list(found["problems"]), "train": []})
    return write_lines(folder / "said.jsonl", found["answers"]), folder / "sqa"


def _gqa(folder: Path) -> tuple[Path, Path]:
    found = official("gqa")
    write_json(folder / "gqa" / "testdev_balanced_questions.json", found["questions"])
    return write_lines(folder / "said.jsonl", found["answers"]), folder / "gqa"


def _textvqa(folder: Path) -> tuple[Path, Path]:
    questions = [
        {"question_id": at, "image_id": f"i{at // 2}", "question": f"what is {at}?", "answers": _people(at)}
        for at in range(NUM)
    ]
    write_json(folder / "vqa" / "TextVQA_0.5.1_val.json", {"data": questions})
    said = [{"question_id": at, "text": "red"} for at in range(NUM)]
    return write_lines(folder / "said.jsonl", said), folder / "vqa"


def _vizwiz(folder: Path) -> tuple[Path, Path]:
    rows = [
        {"image": f"{at}.jpg", "question": f"what is {at}?", "answers": [{"answer": one} for one in _people(at)]}
        for at in range(NUM)
    ]
    write_json(folder / "vqa" / "val.json", rows)
    said = [{"question_id": f"{at}.jpg", "text": "red" if at % 4 else "unanswerable"} for at in range(NUM)]
    return write_lines(folder / "said.jsonl", said), folder / "vqa"


def _people(at: int) -> list[str]:
    num_red = (0, 2, 10)[at % 3]
    return ["red"] * num_red + ["blue"] * (10 - num_red)


def mmbench_rows(num: int) -> list[dict[str, Any]]:
    """Questions with three options in three rotations each; all have the first option right."""
    options = ["a cat", "a dog", "a bird"]
    rows = []
    for index in range(num):
        for turn in range(3):
            row = {"index": index + turn * 1_000_000, "question": f"What is {index}?", "hint": "nan", "image": "aGk="}
            turned = [*options[turn:], *options[:turn]]
            row |= dict(zip("ABC", turned, strict=True)) | {"D": "", "answer": "ABC"[(0 - turn) % 3]}
            rows.append({**row, "category": ("colour", "count")[index % 2]})
    return rows


def _mmbench(folder: Path) -> tuple[Path, Path]:
    rows = mmbench_rows(NUM)
    (folder / "mmbench").mkdir()
    with (folder / "mmbench" / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    # Of every third question one rotation is wrong.
    said = [
        {"question_id": row["index"], "text": "D" if row["index"] < NUM and row["index"] % 3 == 0 else row["answer"]}
        for row in rows
    ]
    return write_lines(folder / "said.jsonl", said), folder / "mmbench"


def _seed(folder: Path) -> tuple[Path, Path]:
    found = official("seed")
    write_json(folder / "seed" / "SEED-Bench.json", found["release"])
    return write_lines(folder / "said.jsonl", found["answers"]), folder / "seed"


def _amber(folder: Path) -> tuple[Path, Path]:
    found = official("amber")
    write_json(folder / "amber" / "annotations.json", found["annotations"])
    write_json(folder / "amber" / "relation.json", found["relation"])
    (folder / "amber" / "safe_words.txt").write_text("\n".join(found["safe"]))
    return write_json(folder / "said.json", found["answers"]), folder / "amber"


def _mm_vet(folder: Path) -> tuple[Path, Path]:
    rows = {
        f"v1_{at}": {
            "imagename": f"{at // 2}.png",
            "question": f"What is {at}?",
            "answer": "a cat",
            "capability": ["rec", "ocr"] if at % 2 else ["rec"],
        }
        for at in range(24)
    }
    write_json(folder / "release" / "mm-vet.json", rows)
    return write_json(folder / "said.json", {key: f"answer {key}" for key in rows}), folder / "release"


def _llava_bench(folder: Path) -> tuple[Path, Path]:
    kinds = ("conv", "detail", "complex")
    asked = [
        {"question_id": at, "image": f"{at // 3}.jpg", "text": f"question {at}", "category": kinds[at % 3]}
        for at in range(24)
    ]
    write_lines(folder / "release" / "questions.jsonl", asked)
    seen = [{"id": str(at), "image": f"{at}.jpg", "caption": "A harbour."} for at in range(8)]
    write_lines(folder / "release" / "context.jsonl", seen)
    answered = [{"question_id": at, "text": f"reference {at}"} for at in range(24)]
    write_lines(folder / "release" / "answers_gpt4.jsonl", answered)
    said = [{"question_id": at, "text": f"answer {at}"} for at in range(24)]
    return write_lines(folder / "said.jsonl", said), folder / "release"


def _mmhal(folder: Path) -> tuple[Path, Path]:
    rows = [
        {
            "question_type": TYPES[at % 8],
            "image_src": f"https://example.org/{at}.jpg",
            "image_content": ["dog"],
            "question": f"question {at}",
            "gt_answer": f"truth {at}",
        }
        for at in range(64)
    ]
    write_json(folder / "release" / "response_template.json", rows)
    said = [{"question_id": at, "text": f"answer {at}"} for at in range(64)]
    return write_lines(folder / "said.jsonl", said), folder / "release"


RELEASES: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "world": _world,
    "chair": _chair,
    "pope": _pope,
    "mme": _mme,
    "scienceqa": _scienceqa,
    "gqa": _gqa,
    "textvqa": _textvqa,
    "vizwiz": _vizwiz,
    "mmbench": _mmbench,
    "seed": _seed,
    "amber": _amber,
    "mm-vet": _mm_vet,
    "llava-bench": _llava_bench,
    "mmhal": _mmhal,
}
JUDGE_SAYS = {
    "mm-vet": ("0.5", "1.0", "0.0"),
    "llava-bench": ("8 6\nwell", "7 9\nwell", "8 8\nwell"),
    "mmhal": ("Rating: 4", "Rating: 1", "Rating: 6"),
}
