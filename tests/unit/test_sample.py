"""What `csr-ray run --dry-run` shows of the prompts: the pictures, and the words as the policy gets them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from csr_ray.app.sample import print_sample
from csr_ray.policy.chat_template import templated
from csr_ray.records import Prompt

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} [assistant]{% endif %}"
)
ASKED = "<s>[user] <image>\nWhat? [assistant]"


def model_with(folder: Path, **files: object) -> str:
    folder.mkdir()
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": TEMPLATE, "tokenizer_config__json": {"bos_token": "<s>"}},
        {"chat_template__json": {"chat_template": TEMPLATE}, "tokenizer_config__json": {"bos_token": "<s>"}},
        {"tokenizer_config__json": {"bos_token": {"content": "<s>"}, "chat_template": TEMPLATE}},
        {
            "tokenizer_config__json": {
                "bos_token": "<s>",
                "chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": TEMPLATE}],
            }
        },
    ],
    ids=["a file", "an older file", "the tokenizer's", "one of several"],
)
def test_the_chat_template_is_found_wherever_a_model_has_it(tmp_path: Path, files: dict[str, object]) -> None:
    assert templated(model_with(tmp_path / "model", **files), question="What?") == ASKED


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config__json": "not JSON"},
        {"chat_template__jinja": "{% for %}"},
        {"chat_template__jinja": "{{ raise_exception('no pictures') }}"},
        {"chat_template__jinja": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
    ],
    ids=["none", "no JSON", "no Jinja", "it refuses", "it breaks out"],
)
def test_where_there_is_no_usable_template_nothing_is_said(tmp_path: Path, files: dict[str, object]) -> None:
    assert templated(model_with(tmp_path / "model", **files), question="What?") is None


@pytest.mark.parametrize("model", ["nowhere/to-be-found", "s3://bucket/model", "/nowhere"])
def test_nothing_is_fetched_to_see_it(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert templated(model, question="What?") is None


def shown(prompts: list[Prompt], *, num: int | None = None, model: str = "/nowhere") -> str:
    console = Console(file=io.StringIO(), width=200)
    print_sample(prompts, num=len(prompts) if num is None else num, model=model, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (640, 480)).save(tmp_path / "kitchen.png")
    return str(tmp_path / "kitchen.png")


def test_the_first_few_are_shown_with_name_and_size_of_the_picture(picture: str, tmp_path: Path) -> None:
    prompts = [Prompt(id=str(number), image=picture, text=f"Question {number}?") for number in range(5)]
    model = model_with(tmp_path / "model", chat_template__jinja=TEMPLATE.replace("{{ bos_token }}", ""))
    text = shown(prompts, num=50, model=model)
    assert "what will be asked, 3 of 50 (as the policy gets it):" in text
    assert text.count("kitchen.png, 640 x 480") == 3
    assert "    [user] <image>\n    Question 0? [assistant]\n" in text and "Question 3?" not in text
    plain = shown(prompts[:1])
    assert "1 (the question; the model's chat template is not here yet):" in plain and "    Question 0?\n" in plain


def test_a_picture_that_cannot_be_read_is_said_and_one_far_away_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    rows = [
        Prompt(id="a", image=str(tmp_path / "broken.png"), text="What?"),
        Prompt(id="b", image="s3://bucket/far.png", text="What?"),
    ]
    text = shown(rows)
    assert "broken.png, which will be set aside: " in text and "not an image in a format" in text
    assert "  s3://bucket/far.png\n" in text


def test_somebody_elses_words_are_shortened_and_cannot_speak_to_the_terminal(picture: str) -> None:
    text = shown([Prompt(id="a", image=picture, text="Red\x1b[2J?" + "x" * 900)])
    assert "\x1b" not in text and "(908 characters)" in text


def test_of_no_prompt_nothing_is_shown() -> None:
    assert shown([]) == ""
