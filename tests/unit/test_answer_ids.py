"""An answer that the policy has not given, in the tokens in which it would have given it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_tiny_llava, build_tiny_qwen_vl

from csr_ray.data.chat import answer_ids, prompt_ids

ANSWER = "A red square."


def _processor(folder: Path, *, build: Any) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(build(folder, seed=0))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _processor(tmp_path_factory.mktemp("llava"), build=build_tiny_llava)


def _read(processor: Any, ids: list[int]) -> str:
    """Prompt and answer as one text, as an engine reads what it has written."""
    return processor.tokenizer.decode([*prompt_ids(processor, question="What is it?"), *ids])


def test_a_space_stands_between_the_prompt_and_an_answer_and_the_end_token_behind_it(llava: Any) -> None:
    end = llava.tokenizer.eos_token_id
    ids = answer_ids(llava, answer=f" {ANSWER}\n", ends=[end])
    assert ids[-1] == end and ids.count(end) == 1
    assert _read(llava, ids).endswith(f"ASSISTANT: {ANSWER}{llava.tokenizer.eos_token}")


def test_an_empty_answer_is_an_end(llava: Any) -> None:
    assert answer_ids(llava, answer=" ", ends=[llava.tokenizer.eos_token_id]) == [llava.tokenizer.eos_token_id]


def test_what_the_template_writes_before_an_answer_stands_before_it(llava: Any) -> None:
    kept = llava.chat_template
    said = "{{ message['content'][-1]['text'] }}"
    try:
        llava.chat_template = (
            "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Q: <image>' }}" + said + "{% else %}"
            "{{ '\nA:\n' }}" + said + "{{ ' [ended]' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '\nA:' }}{% endif %}"
        )
        ids = answer_ids(llava, answer=ANSWER, ends=[llava.tokenizer.eos_token_id])
        text = _read(llava, ids)
    finally:
        llava.chat_template = kept
    assert text.endswith(f"A:\n{ANSWER}{llava.tokenizer.eos_token}"), "no token of ` [ended]` ends an answer"


def test_an_answer_ends_with_the_templates_own_end_token(tmp_path: Path) -> None:
    qwen = _processor(tmp_path, build=build_tiny_qwen_vl)
    end = qwen.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = answer_ids(qwen, answer=ANSWER, ends=[end, qwen.tokenizer.eos_token_id + 1])
    assert ids[-1] == end
    assert _read(qwen, ids).endswith(f"<|im_start|>assistant\n{ANSWER}<|im_end|>")
