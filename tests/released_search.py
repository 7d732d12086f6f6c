"""The search, scores and choice of CSR's released code, written plainly, to test against.

`tests/ray/test_released_trees.py` holds this loop itself to trees that the released code grew. One prompt at a time,
transformers in float32, open_clip one sentence at a time, a Python loop for everything: slow and easy to read. The
program uses nothing of this, and this uses nothing of its search, reward or pairs.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

MEMBERS = 5
PENALTY = 3.0
WEIGHT = 0.9


@dataclass
class Branch:
    """A node of the released tree. `place` is its position among its siblings, from the root down."""

    place: tuple[int, ...]
    ids: list[int]
    text: str = ""
    new_ids: list[int] = field(default_factory=list)
    score: float = 0.0
    total: float = 0.0
    final: bool = False
    kept: bool = False
    clip: float | None = None
    cost: float | None = None
    gap: float = float("inf")
    children: list[Branch] = field(default_factory=list)


@dataclass
class Models:
    policy: Any
    processor: Any
    clip: Any
    clip_transform: Any
    clip_tokenizer: Any

    @classmethod
    def load(cls, world: Path) -> Models:
        import open_clip
        from transformers import AutoModelForImageTextToText, AutoProcessor

        policy = AutoModelForImageTextToText.from_pretrained(world / "policy", dtype=torch.float32).eval()
        clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{world / 'clip'}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{world / 'clip'}")
        return cls(policy, AutoProcessor.from_pretrained(world / "policy"), clip.eval(), transform, tokenizer)


def released_tree(
    models: Models, *, question: str, image: Path, max_new_tokens: int, max_chars: int
) -> tuple[Branch, str | None, str | None]:
    """The whole tree, the chosen and the rejected answer (None if no path ends)."""
    tokenizer = models.processor.tokenizer
    period, end = tokenizer.convert_tokens_to_ids("."), tokenizer.eos_token_id
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = models.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = Image.open(image).convert("RGB")
    inputs = models.processor(text=prompt, images=picture, return_tensors="pt", add_special_tokens=False)
    root = Branch(place=(), ids=[])
    active = [root]
    while active:
        pool: list[Branch] = []
        for parent in active:
            members = coupled_greedy(models, inputs, prefix=parent.ids, period=period, limit=max_new_tokens)
            longest = max(len(ids) for ids, _, _ in members)
            for position, (ids, score, gap) in enumerate(members):
                pads = len(tokenizer.pad_token) * (longest - len(ids))
                whole = prompt + tokenizer.decode(parent.ids + ids, skip_special_tokens=False)
                child = Branch(
                    place=(*parent.place, position),
                    ids=parent.ids + ids,
                    new_ids=ids,
                    text=tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    score=score,
                    total=parent.total + score,
                    final=end in ids or len(whole) + pads >= max_chars,
                    gap=gap,
                )
                parent.children.append(child)
                if not child.final:
                    pool.append(child)
        pool.sort(key=lambda branch: branch.total, reverse=True)
        active = pool if len(pool) < 5 else pool[:1] + pool[-2:]
        for branch in active:
            branch.kept = True
    add_costs(models, root, image=picture)
    costs = sorted(final_paths(root), key=lambda item: item[0])
    if not costs:
        return root, None, None
    return root, costs[0][1], costs[-1][1]


@torch.no_grad()
def coupled_greedy(
    models: Models, inputs: Any, *, prefix: list[int], period: int, limit: int
) -> list[tuple[list[int], float, float]]:
    """Five greedy decodes; each pays 3 at a step for every earlier one that is charged for the same token there.

    Charged is the token taken, but at a decode's end its second choice. Returns for each its tokens, its mean
    penalised log-prob, and the smallest distance between its best and second best candidate (where that is as small
    as rounding, the two implementations may part); best first, of equals the later one.
    """
    ids = torch.cat([inputs["input_ids"], torch.tensor([prefix], dtype=torch.long)], dim=1)
    out = models.policy(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=True)
    cache = out.past_key_values
    cache.batch_repeat_interleave(MEMBERS)
    logits = out.logits[:, -1].repeat(MEMBERS, 1)
    tokens: list[list[int]] = [[] for _ in range(MEMBERS)]
    totals, gaps, done = [0.0] * MEMBERS, [float("inf")] * MEMBERS, [False] * MEMBERS
    for step in range(limit):
        logps = logits.float().log_softmax(dim=-1)
        taken: list[int] = []
        for member in range(MEMBERS):
            if done[member]:
                continue
            scores = logps[member].clone()
            for token in taken:
                scores[token] -= PENALTY
            best = scores.topk(2)
            token = int(best.indices[0])
            gaps[member] = min(gaps[member], float(best.values[0] - best.values[1]))
            totals[member] += float(best.values[0])
            tokens[member].append(token)
            done[member] = token == period
            taken.append(int(best.indices[1]) if done[member] else token)
        if all(done) or step == limit - 1:
            break
        last = torch.tensor([[sequence[-1]] for sequence in tokens])
        out = models.policy(input_ids=last, past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1]
    found = [(ids, total / len(ids), gap) for ids, total, gap in zip(tokens, totals, gaps, strict=True)]
    return sorted(found[::-1], key=lambda one: one[1], reverse=True)


@torch.no_grad()
def add_costs(models: Models, parent: Branch, *, image: Image.Image) -> None:
    """CLIP one sentence at a time, then each child's place among its siblings in both scores."""
    alive = [child for child in parent.children if not too_bad(child.text)]
    for child in alive:
        left = models.clip.encode_image(models.clip_transform(image)[None], normalize=True)
        right = models.clip.encode_text(models.clip_tokenizer([child.text]), normalize=True)
        child.clip = 100 * float(left @ right.T)
    n = len(alive)
    by_self = sorted(alive, key=lambda child: child.total, reverse=True)
    by_clip = sorted(alive, key=lambda child: child.clip, reverse=True)
    for child in alive:
        rank_self, rank_clip = (by_self.index(child) + 1) / n, (by_clip.index(child) + 1) / n
        child.cost = (1 - WEIGHT) * rank_self + WEIGHT * rank_clip
        add_costs(models, child, image=image)


def too_bad(text: str) -> bool:
    """The cleaning, as far as answers of the embedded world can meet it."""
    words = text.split()
    stuck_word = any(len(set(words[i : i + 6])) == 1 for i in range(len(words) - 5))
    letters = text.replace(" ", "")
    stuck_letter = any(len(set(letters[i : i + 11])) == 1 for i in range(len(letters) - 10))
    return len(text) < 4 or stuck_word or stuck_letter


def final_paths(root: Branch) -> list[tuple[float, str]]:
    """(cost, text) of every whole answer, depth first."""
    found: list[tuple[float, str]] = []

    def walk(branch: Branch, costs: list[float], texts: list[str]) -> None:
        for child in branch.children:
            if child.cost is None:
                continue
            path = [*costs, child.cost]
            if child.final:
                total = functools.reduce(operator.add, path)  # sum() rounds otherwise from Python 3.12 on
                found.append((total / (len(path) + 1), " ".join([*texts, child.text])))
            walk(child, path, [*texts, child.text])

    walk(root, [], [])
    return found
