"""What a model folder's files say of its first token is what its tokenizer and chat template do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import FAMILIES, build_tiny_gemma3

from csr_ray.data.chat import needs_special_tokens, prompt_text
from csr_ray.policy.processor import load_processor
from csr_ray.policy.start_token import leaves_start_to_tokenizer


@pytest.mark.parametrize("build", [*FAMILIES.values(), build_tiny_gemma3], ids=lambda build: build.__name__)
def test_files_say_what_prompts_are_made_by(build: Callable[..., Path], tmp_path: Path) -> None:
    folder = build(tmp_path, seed=0)
    processor = load_processor(folder)
    expected = needs_special_tokens(processor.tokenizer, text=prompt_text(processor, question="What?"))
    assert leaves_start_to_tokenizer(folder) is expected


def test_a_template_that_writes_the_token_by_its_name_or_itself_leaves_nothing(tmp_path: Path) -> None:
    folder = FAMILIES["llava"](tmp_path, seed=0)
    assert leaves_start_to_tokenizer(folder) is True
    template = folder / "chat_template.jinja"
    text = template.read_text()
    for start in ("{{ bos_token }}", "<s>"):
        template.write_text(start + text)
        assert leaves_start_to_tokenizer(folder) is False
    template.unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    assert leaves_start_to_tokenizer(folder) is True, "as older repositories have it"


def test_a_folder_that_does_not_say_it_is_not_guessed_at(tmp_path: Path) -> None:
    assert leaves_start_to_tokenizer(tmp_path) is None
    folder = FAMILIES["llava"](tmp_path / "model", seed=0)
    (folder / "tokenizer.json").write_text("{not json")
    assert leaves_start_to_tokenizer(folder) is None
    (folder / "chat_template.jinja").unlink()
    assert leaves_start_to_tokenizer(folder) is None
