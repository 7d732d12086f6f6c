"""Whether a model's chat template leaves it to the tokenizer to begin a prompt with the begin-of-sequence token.

Servers that speak as OpenAI's do add none to what a template has made, so whoever asks such a model there has to say
that they should (vLLM: `add_special_tokens`). This looks at a model folder's files alone, without transformers, whose
import takes longer than all the rest; `csr_ray.data.chat` decides the same for prompts, with the tokenizer at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_TOKENIZER: Final = "tokenizer.json"
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_TEMPLATE: Final = "chat_template.jinja"
_CONFIGS_WITH_A_TEMPLATE: Final = ("chat_template.json", "processor_config.json", _TOKENIZER_CONFIG)
_NAME_IN_A_TEMPLATE: Final = "bos_token"


def leaves_start_to_tokenizer(folder: Path) -> bool | None:
    """Whether a prompt of this model begins with a token that its chat template does not write.

    Args:
        folder: of a Hugging Face model, with its tokenizer.

    Returns:
        None: the files do not say it (an older tokenizer without tokenizer.json, or no chat template).
    """
    from tokenizers import Tokenizer

    path = folder / _TOKENIZER
    template = _template(folder)
    if template is None or not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # what it raises is a plain Exception, whatever is wrong with the file
        return None
    added = len(tokenizer.encode("a").ids) > len(tokenizer.encode("a", add_special_tokens=False).ids)
    start = _json(folder / _TOKENIZER_CONFIG).get("bos_token")
    start = start.get("content") if isinstance(start, dict) else start
    writes_it = _NAME_IN_A_TEMPLATE in template or (bool(start) and str(start) in template)
    return added and not writes_it


def _template(folder: Path) -> str | None:
    path = folder / _TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    for name in _CONFIGS_WITH_A_TEMPLATE:
        if isinstance(found := _json(folder / name).get("chat_template"), str):
            return found
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
