"""Answers side by side as a person sees them: in terminals of any width and colour, in files, and on the page."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from asked_runs import pictures
from PIL import Image
from rich.console import Console

from csr_ray.records import Rejection
from csr_ray.report.asked import (
    AskedAnswer,
    AskedPicture,
    AskedVersion,
    ScoredSentence,
    SideBySide,
    with_new_marked,
)
from csr_ray.report.asked_page import render, write_page
from csr_ray.report.asked_terminal import MOST_SHOWN, print_side_by_side
from csr_ray.report.gallery import RewardScale

VERSIONS = (
    AskedVersion(version=0, round_number=None, label="base"),
    AskedVersion(version=1, round_number=1, label="after round 1"),
)
SCALE = RewardScale(low=10.0, high=30.0)
LONG = "A very long sentence goes on and on about what may be seen in this picture, or may not be seen in it at all."


def answer(version: int, *said: tuple[str, float | None], **changes: Any) -> AskedAnswer:
    sentences = tuple(ScoredSentence(text=text, image_score=score, points=score) for text, score in said)
    usual: dict[str, Any] = {"text": " ".join(text for text, _ in said), "image_score": 20.0}
    return AskedAnswer(version=version, sentences=sentences, **{**usual, **changes})


def asked(*shown: AskedPicture, scale: RewardScale | None = SCALE, **changes: Any) -> SideBySide:
    usual: dict[str, Any] = {
        "run": "runs/x",
        "method": "csr",
        "model": "models/llava",
        "question": "What is there?",
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": 64,
        "scorer": "clip",
        "versions": VERSIONS,
    }
    return SideBySide(pictures=shown, scale=scale, scale_is_the_runs=True, **{**usual, **changes})


def picture(*answers: AskedAnswer, name: str = "kitchen.jpg", path: str = "gone.jpg") -> AskedPicture:
    return AskedPicture(path=path, name=name, width=640, height=480, answers=with_new_marked(answers))


TWO = picture(
    answer(0, ("A cat sits there.", 30.0), ("A dog runs by.", 8.0)),
    answer(1, ("A cat sits there.", 30.0), ("It is red.", 21.0)),
)


def shown(found: SideBySide, *, width: int = 100, is_terminal: bool = True, **console: Any) -> str:
    options: dict[str, Any] = {"color_system": "truecolor", **console}
    file = io.StringIO()
    print_side_by_side(
        found,
        console=Console(file=file, width=width, force_terminal=is_terminal, highlight=False, **options),
    )
    return file.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# ---- the terminal ----


def test_in_a_wide_terminal_the_policies_stand_beside_each_other() -> None:
    lines = plain(shown(asked(TWO))).splitlines()
    heads = next(line for line in lines if "base" in line)
    assert "after round 1" in heads
    assert any("30.0 A cat sits there." in line and line.count("30.0") == 2 for line in lines)
    assert any("8.0 A dog runs by." in line and "+  21.0 It is red." in line for line in lines)
    assert "kitchen.jpg 640 x 480" in lines


@pytest.mark.parametrize("width", [60, 40, 24])
def test_in_a_narrow_terminal_they_stand_below_each_other_and_nothing_is_lost(width: int) -> None:
    long = picture(answer(0, (LONG, 12.0)), answer(1, (LONG.replace("very", "quite"), 12.0)))
    text = plain(shown(asked(long), width=width))
    assert all(len(line.rstrip()) <= width for line in text.splitlines()), text
    assert text.index("base") < text.index("after round 1")
    words = " ".join(text.split())
    assert words.count("seen") == 4 and words.count("all.") == 2


def test_a_sentence_is_coloured_by_its_score_and_the_colours_are_the_pages() -> None:
    text = shown(asked(TWO))
    css = (Path(__file__).parents[2] / "csr_ray" / "report" / "report.css").read_text()
    light = dict(re.findall(r"--(c\d): (#[0-9a-f]{6})", css.split("@media")[0]))

    def ground(name: str) -> str:
        number = int(light[name][1:], 16)
        return f"48;2;{number >> 16};{number >> 8 & 255};{number & 255}m"

    assert re.search(re.escape(ground("c8")) + r"A cat sits there\.", text)
    assert re.search(re.escape(ground("c0")) + r"A dog runs by\.", text)
    assert re.search(re.escape(ground("c4")) + r"It is red\.", text)


def test_with_no_color_there_is_no_colour_and_the_scores_stand_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(asked(TWO))
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|38|48)[;m]", text)
    assert "8.0 A dog runs by." in plain(text)
    assert "90 % of this run's sentences have 10.0 to 30.0" in " ".join(plain(text).split())


def test_an_old_terminal_gets_colours_that_it_has() -> None:
    text = shown(asked(TWO), color_system="standard")
    assert "48;2" not in text and "48;5" not in text
    assert re.search(r"\x1b\[30;43mA dog runs by\.", text), "black on yellow"


def test_a_file_gets_a_line_a_sentence_however_long_it_is_and_no_escapes() -> None:
    long = picture(answer(0, (LONG, 12.0)), answer(1, (LONG, 12.0)))
    text = shown(asked(long), width=30, is_terminal=False, color_system=None)
    assert "\x1b" not in text
    assert text.count(f"  12.0 {LONG}\n") == 2


def test_the_words_of_a_model_cannot_speak_to_the_terminal() -> None:
    evil = picture(answer(0, ("Red \x1b[2J\x1b]0;x\x07 cat.", 12.0)), answer(1, ("\x9b31mIt is.\r", 12.0)))
    text = shown(asked(evil, question="What\x1b[31m?"))
    assert "\x1b[2J" not in text and "\x1b]0" not in text and "\x07" not in text
    assert "\x9b" not in text and "\r" not in text and "What\x1b[31m" not in text


def test_markup_in_an_answer_is_text() -> None:
    text = plain(shown(asked(picture(answer(0, ("A [red]cat[/red] [link=x]sits.", 12.0)), answer(1)))))
    assert "[red]cat[/red] [link=x]sits." in " ".join(text.split())


def test_without_a_scorer_there_are_sentences_and_no_scores() -> None:
    found = asked(
        picture(*(answer(one, ("A cat sits there.", None), image_score=None) for one in (0, 1))),
        scale=None,
        scorer=None,
    )
    text = plain(shown(found))
    assert "A cat sits there." in text and "CLIP" not in text and " - " not in text


def test_what_has_no_answer_says_why_and_what_was_cut_says_where() -> None:
    found = asked(picture(answer(0, reason="the picture is too large"), answer(1, ("A cat", 12.0), is_cut=True)))
    text = " ".join(plain(shown(found)).split())
    assert "no answer: the picture is too large" in text and "cut at 64 tokens" in text
    silent = plain(shown(asked(picture(answer(0, image_score=None), answer(1, image_score=None)))))
    assert silent.count("(it says nothing)") == 2 and "0 sentences" in silent


def test_of_many_pictures_there_is_a_summary() -> None:
    few = asked(*[replace(TWO, name=f"{number}.jpg") for number in range(2)])
    assert "0.jpg" in shown(few) and "changed" in shown(few)
    many = asked(*[replace(TWO, name=f"{number}.jpg") for number in range(MOST_SHOWN + 1)])
    text = plain(shown(many))
    assert "A cat sits there." not in text
    assert re.search(r"after round 1 +7 +7 +20\.0 +2\.0", text)


def test_pictures_that_were_set_aside_are_counted_and_the_first_are_named() -> None:
    aside = tuple(Rejection(id=None, source=f"{number}.png", reason="empty file") for number in range(7))
    text = plain(shown(asked(TWO, set_aside=aside)))
    assert "7 pictures set aside:" in text and "0.png: empty file" in text and "and 2 more" in text


def test_drawn_answers_say_how_they_were_drawn() -> None:
    assert "drawn at temperature 0.7, seed 5" in plain(shown(asked(TWO, temperature=0.7, seed=5)))


# ---- the page ----


class Elements(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Elements:
    elements = Elements()
    elements.feed(html)
    return elements


def test_the_page_is_one_file_with_its_pictures_in_it(tmp_path: Path) -> None:
    here = pictures(tmp_path, num=1)[0]
    found = asked(replace(TWO, path=here.path), replace(TWO, name="gone.jpg"))
    write_page(tmp_path / "page.html", found=found)
    html = (tmp_path / "page.html").read_text()
    assert html.count("data:image/png;base64,") == 1, "30 pixels wide, so nothing may be lost"
    assert "picture not found" in html
    assert "default-src 'none'" in html and "<script" not in html
    assert not re.search(r"(?:src|href)=\"(?!data:)", html), "nothing is fetched"


def test_the_page_has_every_sentence_with_its_score_and_colour() -> None:
    html = render(asked(TWO))
    assert '<span class="score">8.0</span><span><span class="sentence c0">A dog runs by.</span></span>' in html
    assert re.search(r"new: </span></span><span class=\"score\">21\.0</span>.*c4\">It is red\.", html)
    words = " ".join("".join(parsed(html).text).split())
    assert "What is there?" in words and "base CLIP 20.0, 2 sentences" in words


def test_whatever_is_said_or_named_the_page_has_the_same_elements() -> None:
    def page(text: str) -> list[tuple[str, tuple[str, ...]]]:
        one = picture(answer(0, (text, 12.0)), answer(1, reason=text), name=text)
        aside = (Rejection(id=None, source=text, reason=text),)
        found = asked(one, question=text, run=text, method=text, model=text, scorer=text, set_aside=aside)
        return parsed(render(found)).tags

    for attack in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "{{ 7 * 7 }}"):
        assert page(attack) == page("words"), attack


def test_of_a_long_path_of_a_model_the_page_has_the_end() -> None:
    html = render(asked(TWO, model="/home/somebody/models/of/every/kind/llava/policy", scorer=None, scale=None))
    assert "<dd>…/llava/policy</dd>" in html and "none, so nothing is coloured" in html
    assert "<dd>models/llava</dd>" in render(asked(TWO))


def test_a_large_picture_is_made_small(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(path, quality=95)
    html = render(asked(replace(TWO, path=str(path))))
    assert path.stat().st_size > 400_000 > len(html) - 30_000
