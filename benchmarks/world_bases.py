"""What the base models of the embedded world's variants are like, before any round.

Builds each variant's world (or finds it in the cache), lets the policy describe held-out images greedily, in
transformers, and asks the scorer, for every image whose objects lack a partner, whether each true sentence scores
above each sentence about an absent partner. Prints a Markdown row a variant; its CPU seconds are those of the longer
training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.evaluation.world import describe_metrics
from csr_ray.world.build import cached_world
from csr_ray.world.language import sentence
from csr_ray.world.variant import DEVELOPMENT_VARIANTS, UNTOUCHED_VARIANTS, Variety, variety

BATCH_IMAGES = 100
MAX_TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", type=int, nargs="*", help="by default 0 and the family of twelve")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=400, help="held-out images")
    parser.add_argument("--clip-steps", type=int, help="steps that the scorer is trained, as in world.clip_steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| variant | CPU seconds | CHAIR_s | CHAIR_i | recall | repeats | sentences | scorer right |")
    print("|---|---|---|---|---|---|---|---|")
    for number in arguments.variants or (0, *DEVELOPMENT_VARIANTS, *UNTOUCHED_VARIANTS):
        section = World(seed=arguments.seed, variant=number, clip_steps=arguments.clip_steps)
        world = cached_world(world_spec(section), progress=False)
        print(row(world, shown=variety(number), limit=arguments.limit), flush=True)


def row(world: Path, *, shown: Variety, limit: int) -> str:
    prompts = read_rows(world / "heldout/prompts.jsonl")[:limit]
    truth = {line["id"]: line["objects"] for line in read_rows(world / "heldout/truth.jsonl")}
    metrics = describe_metrics(described(world, prompts=prompts), truth=truth, kinds=shown.kinds)
    percent = " | ".join(f"{100 * metrics[name]:.1f}" for name in ("chair_s", "chair_i", "recall", "repeat"))
    training = json.loads((world / "world.json").read_text())["training"]
    seconds = max(figures["cpu_seconds"] for figures in training.values())
    right = share_right(world, prompts=prompts, truth=truth, shown=shown)
    return f"| {shown.number} | {seconds:.0f} | {percent} | {metrics['sentences']:.2f} | {100 * right:.1f} |"


@torch.inference_mode()
def described(world: Path, *, prompts: list[dict]) -> dict[str, str]:
    """The policy's greedy answers by id."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(world / "policy")
    model = LlavaForConditionalGeneration.from_pretrained(world / "policy").eval()
    said = {}
    for start in range(0, len(prompts), BATCH_IMAGES):
        batch = prompts[start : start + BATCH_IMAGES]
        turns = [[{"type": "image"}, {"type": "text", "text": line["prompt"]}] for line in batch]
        texts = [
            processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
            for turn in turns
        ]
        images = [Image.open(world / "heldout" / line["image"]).convert("RGB") for line in batch]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
        answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        said.update({line["id"]: text for line, text in zip(batch, answers, strict=True)})
    return said


@torch.inference_mode()
def share_right(world: Path, *, prompts: list[dict], truth: dict[str, list[dict]], shown: Variety) -> float:
    """Of pairs of a true sentence and one about an absent partner of the same image: where the true one wins."""
    import open_clip

    name = f"local-dir:{world / 'clip'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenize, rng = open_clip.get_tokenizer(name), np.random.default_rng(0)
    won = []
    for line in prompts:
        there = [(item["kind"], item["colour"]) for item in truth[line["id"]]]
        kinds = {kind for kind, _ in there}
        absent = [(shown.partner[kind], colour) for kind, colour in there if shown.partner[kind] not in kinds]
        if not absent:
            continue
        template = shown.templates[int(rng.integers(len(shown.templates)))]
        texts = [sentence(kind, colour=colour, template=template) for kind, colour in (*there, *absent)]
        pixels = preprocess(Image.open(world / "heldout" / line["image"]).convert("RGB"))[None]
        sentences = model.encode_text(tokenize(texts), normalize=True)
        scores = (model.encode_image(pixels, normalize=True) @ sentences.T)[0]
        won += (scores[: len(there), None] > scores[None, len(there) :]).flatten().tolist()
    return float(np.mean(won))


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
