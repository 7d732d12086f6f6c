"""Run folders with real tables for the tests of csr-ray annotate: trees with two answers each, and their pairs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from fakes import tiny_config
from report_runs import png
from rich.console import Console

from csr_ray.app.annotate import Asked, opened_server
from csr_ray.app.annotate_server import AnnotationServer
from csr_ray.methods.base import Dropped
from csr_ray.methods.csr import Csr
from csr_ray.records import Candidate, Phase, Prompt, Rollout
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import Outcome, join_example_units, write_example_unit, write_rollouts


def rollout_of(number: int, *, image: str, question: str = "Describe the picture.", words: str = "") -> Rollout:
    """A tree with two answers of two sentences: nodes 0 and 1 (rewarded more) against nodes 2 and 3."""
    texts = (
        f"A red circle stands at the left{words}.",
        f"A green square number {number} is below it.",
        f"There is a blue dog{words}.",
        f"It sits on a chair number {number}.",
    )
    candidates = tuple(
        Candidate(
            node=node,
            text=text,
            token_ids=(10 * number + node, 5),
            logp=-1.0 - node,
            parent=None if node % 2 == 0 else node - 1,
            depth=1 + node % 2,
            scores={"self": 60.0 - node, "image": 32.0 - 4 * node},
            reward=40.0 - 5 * node,
            final=node % 2 == 1,
            kept=True,
        )
        for node, text in enumerate(texts)
    )
    prompt = Prompt(id=f"p{number}", image=image, text=question)
    return Rollout(prompt=prompt, candidates=candidates, policy_version=0, seed=7 + number)


def write_run(
    root: Path,
    *,
    num_prompts: int = 4,
    num_rounds: int = 1,
    has_pairs: bool = True,
    question: str = "Describe the picture.",
    words: str = "",
) -> Path:
    """A run folder as a run leaves it while it goes on: config, journal, candidates and, if decided, pairs."""
    images = root.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True)
    config = tiny_config(root)
    (root / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    (root / "journal.jsonl").write_text(json.dumps({"kind": "rollout", "round": 0, "phase": "main"}) + "\n")
    method = Csr(search=config.search, reward=config.reward, pairs=config.pairs)
    for index in range(num_rounds):
        folder = root / f"round_{index:03d}"
        rollouts = []
        for number in range(num_prompts):
            path = images / f"{number}.png"
            path.write_bytes(png(40, 30, seed=number))
            rollouts.append(rollout_of(number, image=str(path), question=question, words=words))
        write_rollouts(folder / "candidates" / "unit_a.parquet", rollouts=rollouts)
        if has_pairs:
            examples = [example for rollout in rollouts for example in _examples(method, rollout)]
            unit, outcome = folder / "unit_a.parquet", Outcome()
            for example in examples:
                outcome.count(example)
            write_example_unit(unit, examples=examples, outcome=outcome)
            join_example_units(folder / "pairs.parquet", units=[unit])
            unit.unlink()
    return root


def _examples(method: Csr, rollout: Rollout) -> list:
    found = method.examples(Phase(), rollout)
    assert not isinstance(found, Dropped), found
    return list(found)


@contextmanager
def serving(run: Path, **asked: object) -> Iterator[AnnotationServer]:
    """The server of `csr-ray annotate`, in a thread, while the block lasts; `asked` are the fields of `Asked`."""
    with ExitStack() as held:
        server = held.enter_context(
            opened_server(RunFolder(run), asked=Asked(**asked), console=Console(quiet=True))  # type: ignore[arg-type]
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        held.callback(thread.join)
        held.callback(server.shutdown)
        yield server
