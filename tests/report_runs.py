"""Run folders and summaries as a run leaves them, for tests of what is made of them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from csr_ray.report import write_report

EVAL = {"chair_s": 0.42, "chair_i": 0.2, "recall": 0.997, "repeat": 0.03, "sentences": 3.0, "pope_acc": 0.87}
ATTACK = "<script>alert('x')</script>"


def summary_of(*evals: dict[str, Any] | None, base: dict[str, Any] | None = EVAL) -> dict[str, Any]:
    """A summary with one round for each eval."""
    rounds = [
        {
            "round": i,
            "policy_version": i + 1,
            "rollout": {"prompts": 4, "nodes": 40, "tokens": 6000, "seconds": 60.0},
            "score": {"sentences": 40, "seconds": 9.0, "wait_share": 0.1},
            "pairs": {"made": 4, "dropped": {"same_text": 2}, "chosen_reward": 30.0, "rejected_reward": 20.0},
            "train": {"pairs": 4, "steps": 1, "seconds": 30.0, "optimizer_seconds": 18.0, "loss_first": 0.7},
            "publish": {"bytes": 1000, "seconds": 2.0},
            "eval": found,
            "seconds": 100.0,
        }
        for i, found in enumerate(evals)
    ]
    return {"method": "csr", "versions": {"csr_ray": "0.1.0"}, "base": {"eval": base}, "rounds": rounds}


def write_round(
    run: Path, *, index: int = 0, num_pairs: int = 4, text: str = "A red circle.", image: Any = None, **pair: Any
) -> None:
    """A round folder: each tree has two answers of one sentence, nodes 0 (chosen) and 1; margins are 0, 1, 2, ..."""
    folder = run / f"round_{index:03d}"
    (folder / "candidates").mkdir(parents=True)
    nodes, pairs = [], []
    for i in range(num_pairs):
        for node, reward in ((0, 20.0 + i), (1, 20.0)):
            nodes.append(
                {
                    "id": f"p{i}",
                    "node": node,
                    "parent": None,
                    "depth": 1,
                    "text": f"{text} {node}",
                    "token_ids": [1, 2, 3],
                    "logp": -1.5,
                    "self_score": 60.0,
                    "image_score": reward,
                    "reward": reward,
                    "final": True,
                    "kept": True,
                    "policy_version": index,
                }
            )
        pairs.append(
            {
                "id": f"p{i}",
                "image": "nowhere.png" if image is None else image,
                "prompt": "What is this?",
                "chosen": f"{text} 0",
                "rejected": f"{text} 1",
                "chosen_reward": 20.0 + i,
                "rejected_reward": 20.0,
                "chosen_logp": -1.5,
                "rejected_logp": -2.5,
                "chosen_nodes": [0],
                "rejected_nodes": [1],
                **pair,
            }
        )
    pq.write_table(pa.Table.from_pylist(nodes), folder / "candidates" / "unit_0.parquet")
    if pairs:
        pq.write_table(pa.Table.from_pylist(pairs), folder / "pairs.parquet")


def write_summary(run: Path, *, summary: dict[str, Any]) -> None:
    (run / "summary.json").write_text(json.dumps(summary))


def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def facts_of(html: str) -> dict[str, Any]:
    """What the page's script knows from the start."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def gallery_of(html: str) -> dict[str, list[dict[str, Any]]]:
    """The pairs, trees and images that a page has inside, each of all its chunks."""
    found: dict[str, list[dict[str, Any]]] = {"pairs": [], "trees": [], "images": []}
    chunk = r'<script type="application/json" class="chunk" data-kind="(\w+)">(.*?)</script>'
    for kind, content in re.findall(chunk, html, re.DOTALL):
        found[kind] += json.loads(content)
    return found


def words(html: str) -> str:
    """The visible text, without style and scripts, white space collapsed."""
    bare = re.sub(r"<(style|script).*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", bare).split())


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()
