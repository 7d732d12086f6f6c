"""What a sentence costs a CPU scorer with CLIP's own text tower, and what leaving out its padding saves.

Random weights, which cost what trained ones cost. Prints `text_s` (seconds a sentence), `text_padded_s` (open_clip's
`encode_text`, 77 positions) and `text_speedup`, the ratio of medians of alternating turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

BASE = "The image features a large brown dog sitting on a wooden bench next to a small red ball."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-L-14-336-quickgelu", help="open_clip's name of an architecture")
    parser.add_argument("--batch", type=int, default=64, help="sentences that are embedded together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, default=None, help="also write the rows here")
    arguments = parser.parse_args()

    import open_clip
    import torch

    from actors.score.text_tower import TextTower

    torch.set_num_threads(arguments.threads)
    config = open_clip.get_model_config(arguments.model)
    config["vision_cfg"]["layers"] = 1  # the image tower is not what is measured
    model = open_clip.CLIP(**config).eval().requires_grad_(False)
    words = BASE.split()
    texts = [" ".join(words[number % 5 :]) + f" {number} more." for number in range(arguments.batch)]
    tokens = open_clip.get_tokenizer(arguments.model)(texts)
    tower = TextTower(model)
    needed = tokens[:, : tower.num_needed(tokens)]

    turns: dict[str, Callable[[], object]] = {
        "text_padded_s": lambda: model.encode_text(tokens),
        "text_s": lambda: tower.encode(needed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    with torch.inference_mode():
        for _ in range(arguments.repeats):
            for name, turn in turns.items():
                started_s = time.perf_counter()
                turn()
                seconds[name].append((time.perf_counter() - started_s) / len(texts))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {"name": "text_speedup", "value": medians["text_padded_s"] / medians["text_s"], "unit": "ratio"},
        *({"name": name, "value": value, "unit": "s a sentence"} for name, value in medians.items()),
        {"name": "positions", "value": needed.shape[1], "unit": f"of {tokens.shape[1]}"},
    ]
    for row in rows:
        print(f"{row['name']:16} {row['value']:8.4g} {row['unit']}")
    if arguments.json:
        record = {
            "name": "clip",
            "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
            "versions": {name: metadata.version(name) for name in ("torch", "open_clip_torch")},
            "headline": "text_speedup",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
