"""`csr-ray edit-truths`: a judge at an endpoint writes POVID's rejected answers, once, into a file (docs/povid.md).

Each prompt's truth becomes an edit of it with plausible hallucinations. What the judge has answered is kept beside
the file, so the same command again pays nothing twice. Knows prompts, the judge and the file, which
`csr_ray.methods.povid` reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from csr_ray.data.parsing import is_unicode
from csr_ray.data.prompts import PromptFile
from csr_ray.errors import ConfigError
from csr_ray.judging.session import JudgeSession
from csr_ray.judging.template import Template
from csr_ray.ports import Judge
from csr_ray.records import Prompt
from csr_ray.store.atomic import write_atomically

_TEMPLATE: Final = Path(__file__).parents[1] / "methods" / "templates" / "povid_editor.txt"
# An edit keeps the length of its truth, and no tokenizer makes more of a text than it has bytes.
_TOKENS_BESIDE: Final = 64


def write_edits(
    prompts: str, *, output: Path, session: JudgeSession, images: str | None = None, limit: int | None = None
) -> Counter[str]:
    """Let the judge edit the truth of every prompt, and write a JSONL of `id` and `rejected`, in the prompts' order.

    Args:
        prompts: as `data.prompts`. No picture is opened.
        images: as `data.images`.
        limit: the first so many usable prompts.

    Returns:
        How many have an edit (`edited`), and by reason how many have none.

    Raises:
        ConfigError: no prompt has a truth, none could be edited, or the judge cannot be asked.
        JudgeGone: the judge has stopped answering. What it answered until then is kept.
    """
    template = session.template(_TEMPLATE, needs=("question", "truth"))
    counts: Counter[str] = Counter()
    truths: dict[str, Prompt] = {}
    for prompt in PromptFile(prompts, images=images, limit=limit).take():
        if prompt.truth and prompt.truth.strip():
            truths[prompt.id] = prompt
        else:
            counts["truth is missing"] += 1
    if not truths:
        raise ConfigError(f"{prompts}: no prompt has a truth; name the column of reference answers truth")
    said, failed = session.each({key: partial(_edit, template=template, prompt=truths[key]) for key in truths})
    counts += failed
    edits: dict[str, str] = {}
    for key, text in said.items():
        edit = parse_edit(text)
        if not edit:
            counts["no text between [[ and ]]"] += 1
        elif edit == str(truths[key].truth).strip():
            counts["edit equals truth"] += 1
        else:
            edits[key] = edit
    if not edits:
        raise ConfigError(f"{prompts}: the judge has edited no truth: {dict(counts)}")
    write_atomically(output, write=lambda path: path.write_text(_lines(edits), encoding="utf-8"))
    counts["edited"] = len(edits)
    return counts


def parse_edit(reply: str) -> str:
    """What stands between the first `[[` and the last `]]`; empty where there is no such text."""
    _, opened, rest = reply.partition("[[")
    edit, closed, _ = rest.rpartition("]]")
    return edit.strip() if opened and closed and is_unicode(edit) else ""


async def _edit(judge: Judge, *, template: Template, prompt: Prompt) -> str:
    truth = str(prompt.truth).strip()
    messages = template.messages({"question": prompt.text, "truth": truth})
    return await judge.reply(messages, temperature=0.0, max_tokens=len(truth.encode()) + _TOKENS_BESIDE)


def _lines(edits: Mapping[str, str]) -> str:
    return "".join(
        json.dumps({"id": key, "rejected": edit}, ensure_ascii=False) + "\n" for key, edit in edits.items()
    )
