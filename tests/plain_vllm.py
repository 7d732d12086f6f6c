"""Log-probs of given answers by vLLM alone, for a test that runs this as a process of its own.

Reads `{"model": ..., "rows": [{"image", "prompt_ids", "answer_ids"}]}` from the file it is given; prints one list of
log-probs a row.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(
        asked["model"],
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        block_size=32,
        kv_cache_memory_bytes=64 * 2**20,
        limit_mm_per_prompt={"image": 1},
        enforce_eager=True,
        enable_chunked_prefill=False,  # a prefill in parts and prompt log-probs do not go together
        disable_log_stats=True,
    )
    prompts = [
        TokensPrompt(
            prompt_token_ids=[*row["prompt_ids"], *row["answer_ids"]],
            multi_modal_data={"image": Image.open(row["image"]).convert("RGB")},
        )
        for row in asked["rows"]
    ]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0), use_tqdm=False)
    assert not any(name.partition(".")[0] in ("csr_ray", "actors") for name in sys.modules)
    logps = []
    for row, output in zip(asked["rows"], outputs, strict=True):
        entries = output.prompt_logprobs[-len(row["answer_ids"]) :]
        logps.append([entry[token].logprob for entry, token in zip(entries, row["answer_ids"], strict=True)])
    print(json.dumps(logps))


if __name__ == "__main__":
    main()
