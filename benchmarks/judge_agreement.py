"""How often does what decides in a run decide as the truth does? For judges that are no rule: CLIP, the policy.

Reads finished runs on the embedded world, whose prompts have a truth also where the run was not told it. It takes
every pair that was trained on; of a run without pairs, the answers to each prompt with the highest and with the
lowest CLIP score. It counts the kinds of things that either answer names wrongly, because the picture does not show
them, and those that it names rightly. A row a run:

    pairs       of two answers that differ in what they name wrongly
    agrees      share of these in which the preferred one names fewer wrong things
    names less  share of all pairs in which the preferred one names fewer of the things that are there
    shorter     share of all pairs in which the preferred one has fewer tokens

  python benchmarks/judge_agreement.py runs/methods/csr/seed0 runs/methods/clip-filter/seed0
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from result_file import told_in_a_line
from variant_tables import markdown

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.errors import ConfigError
from csr_ray.records import Candidate
from csr_ray.stages.state import RunState
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples, read_rollouts
from csr_ray.world.build import cached_world
from csr_ray.world.mentions import VOCABULARY_FILE, kinds_of, mentioned_kinds

Said = tuple[str, int]
"""An answer, and how many tokens it has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    rows = [("run", "pairs", "agrees, %", "names less, %", "shorter, %")]
    rows += [row_of(folder) for folder in parser.parse_args().runs]
    print(markdown(rows))


def row_of(root: Path) -> tuple[str, str, str, str, str]:
    """The table's row of a run.

    Raises:
        ConfigError: it has no embedded world, or nothing was preferred in it.
    """
    folder = RunFolder(root)
    config = load_config(folder.config)
    if not config.world.enabled:
        raise ConfigError(f"{root}: world.enabled = false; the truth is that of the embedded world")
    world = cached_world(world_spec(config.world))
    kinds = kinds_of((world / "heldout" / VOCABULARY_FILE).read_bytes())
    prompts = world / "train" / "prompts_with_truth.jsonl"
    truths = {row["id"]: row["truth"] for row in map(json.loads, prompts.read_text(encoding="utf-8").splitlines())}
    counts = counted(preferred(folder), truths=truths, kinds=kinds)
    num, differ = counts["pairs"], counts["differ"]
    if not differ:
        raise ConfigError(f"{root}: no two answers that differ in what they name wrongly, of {num} pairs")
    shares = counts["agrees"] / differ, counts["names_less"] / num, counts["shorter"] / num
    agrees, less, shorter = (f"{100 * share:.1f}" for share in shares)
    return (f"{root.parent.name}, {root.name}", f"{differ:,} of {num:,}", agrees, less, shorter)


def counted(
    pairs: Iterable[tuple[str, Said, Said]], *, truths: Mapping[str, str], kinds: Sequence[str]
) -> Counter[str]:
    """How many pairs there are, and in how many the preferred answer is what the table says.

    Args:
        truths: what is in each prompt's picture, in words.
        kinds: of things, as the world calls them.
    """
    counts: Counter[str] = Counter()
    for prompt_id, better, worse in pairs:
        shown = set(mentioned_kinds(truths[prompt_id], kinds=kinds))
        named = [set(mentioned_kinds(text, kinds=kinds)) for text, _ in (better, worse)]
        wrong = [len(some - shown) for some in named]
        right = [len(some & shown) for some in named]
        counts["pairs"] += 1
        counts["differ"] += wrong[0] != wrong[1]
        counts["agrees"] += wrong[0] < wrong[1]
        counts["names_less"] += right[0] < right[1]
        counts["shorter"] += better[1] < worse[1]
    return counts


def preferred(folder: RunFolder) -> Iterator[tuple[str, Said, Said]]:
    """Each prompt's id with the answer that was preferred and the one that it was preferred to, of all rounds."""
    journal = Journal(folder.journal)
    state = RunState(config=load_config(folder.config), folder=folder, journal=journal, model="", versions={})
    for round_index in range(state.config.run.rounds):
        for cycle in state.cycles(round_index):
            if folder.pairs(cycle).is_file():
                for pair in read_examples(folder.pairs(cycle)):
                    yield (
                        pair.id,
                        (pair.chosen.text, len(pair.chosen.token_ids)),
                        (pair.rejected.text, len(pair.rejected.token_ids)),
                    )
                continue
            for name in journal.units(**cycle.key).names:
                for rollout in read_rollouts(folder.candidates(cycle, unit=name)):
                    scored = [one for one in rollout.candidates if one.image_score is not None]
                    if scored:
                        best, worst = max(scored, key=_image_score), min(scored, key=_image_score)
                        said = ((one.text, len(one.token_ids)) for one in (best, worst))
                        yield (rollout.prompt.id, next(said), next(said))


def _image_score(candidate: Candidate) -> float:
    assert candidate.image_score is not None
    return candidate.image_score


if __name__ == "__main__":
    told_in_a_line(main)
