"""A prompt as a model sees it, from its chat template alone: for a person to read, without loading a tokenizer.

What is served and trained goes through the model's own processor (`csr_ray.data.chat`), whose import takes seconds.
Nothing is fetched: of a hub's model only what its cache holds is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from csr_ray.policy.source import is_hub_id
from csr_ray.store.objects import is_url

_TOKENIZER: Final = "tokenizer_config.json"
# Newer repositories have a file of their own for it, older ones a key in one of these.
_PLAIN: Final = "chat_template.jinja"
_KEYED: Final = ("chat_template.json", "processor_config.json", _TOKENIZER)
_TOKENS: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


def templated(model: str, *, question: str) -> str | None:
    """The question about a picture in the model's chat template, up to where the answer begins; None: not known here.

    A begin-of-sequence token that the tokenizer would put in front is not shown.
    """
    template = _template(model)
    if template is None:
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    content = [{"type": "image"}, {"type": "text", "text": question}]
    try:
        rendered, _ = render_jinja_template(
            conversations=[[{"role": "user", "content": content}]],
            chat_template=template,
            add_generation_prompt=True,
            **_special_tokens(model),
        )
    except Exception:  # a template is somebody else's program; whoever serves the model says what is wrong with it
        return None
    return str(rendered[0])


def _template(model: str) -> str | None:
    plain = _file(model, _PLAIN)
    if plain is not None:
        try:
            return plain.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
    found = (_json(model, name).get("chat_template") for name in _KEYED)
    template = next((one for one in found if one), None)
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(model: str) -> dict[str, str]:
    """By the names that templates call them."""
    config = _json(model, _TOKENIZER)
    found = {name: config.get(name) for name in _TOKENS}
    plain = {name: one.get("content") if isinstance(one, Mapping) else one for name, one in found.items()}
    return {name: one for name, one in plain.items() if isinstance(one, str)}


def _json(model: str, name: str) -> Mapping[str, Any]:
    file = _file(model, name)
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _file(model: str, name: str) -> Path | None:
    """A file of the model on this machine; None if it is not here."""
    if is_url(model):
        return None
    if is_hub_id(model):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, name)
        return Path(found) if isinstance(found, str) else None
    file = Path(os.path.expanduser(model), name)
    return file if file.is_file() else None
