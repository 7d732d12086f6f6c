"""Before and after on the page: which pictures are shown, what is marked in them, and that text stays text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_runs import ATTACK, EVAL, page, png, summary_of, words, write_summary

from csr_ray.records import Mark, MarkedAnswer
from csr_ray.report.before_after import MAX_SHOWN, MAX_SHOWN_A_GROUP, MAX_VERSIONS, marked_parts
from csr_ray.store.marked_answers import write_marked_answers

RED_STAR = '[{"kind": "star", "colour": "red", "place": "top left"}]'


def described(
    key: str,
    text: str,
    *,
    absent: tuple[str, ...] = (),
    missed: tuple[str, ...] = (),
    image: str = "nowhere.png",
    question: str = "What is there?",
    truth: str = RED_STAR,
) -> MarkedAnswer:
    mark = Mark(counts={"chair_s": (float(bool(absent)), 1.0)}, absent=absent, missed=missed)
    return MarkedAnswer(
        asked_as="describe", id=key, image=image, question=question, answer=text, truth=truth, mark=mark
    )


def answered(key: str, text: str, *, is_right: bool) -> MarkedAnswer:
    mark = Mark(counts={"pope_acc": (float(is_right), 1.0)})
    return MarkedAnswer(
        asked_as="yes_no", id=key, image="no.png", question="A star?", answer=text, truth='"yes"', mark=mark
    )


def write_run(run: Path, *versions: list[MarkedAnswer], named: bool = True) -> Path:
    summary = summary_of(*[EVAL] * (len(versions) - 1))
    if not named:
        for entry in summary["rounds"]:
            del entry["policy_version"]
    write_summary(run, summary=summary)
    for version, answers in enumerate(versions):
        write_marked_answers(run / "eval" / f"version_{version:03d}.parquet", answers=answers)
    return run


def section(html: str) -> str:
    found = re.search(r'<section id="before-and-after">.*?</section>', html, re.DOTALL)
    return found[0] if found else ""


MOON = ("moon",)
BASE = [
    described("mended", "A star. A moon.", absent=MOON),
    described("broken", "A star."),
    described("lost", "A star."),
    described("still", "A moon.", absent=MOON, missed=("star",)),
    described("found", "Nothing.", missed=("star",)),
    described("same", "A star."),
]
LAST = [
    described("mended", "A star."),
    described("broken", "A star. Two moons.", absent=MOON),
    described("lost", "Nothing.", missed=("star",)),
    described("still", "A moon.", absent=MOON, missed=("star",)),
    described("found", "A star."),
    described("same", "A star."),
]


def test_pictures_stand_in_groups_by_what_changed_with_every_version_side_by_side(tmp_path: Path) -> None:
    html = section(page(write_run(tmp_path, BASE, BASE, LAST)))
    text = words(html)
    titles = ["Mended:", "Newly wrong:", "Lost:", "Still wrong", "Found:", "Right before and after"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "All 6 are on this page." in text and "1 of 6 pictures" in text
    assert "mended · in the picture: red star (top left)" in text
    assert "base A star. A moon (not in the picture) . after round 1 A star. A moon" in text
    assert "after round 2 A star." in text
    assert "Nothing. leaves out: star" in text
    assert "<mark>moons<" in html


def test_the_section_needs_no_script_and_says_in_words_what_is_underlined(tmp_path: Path) -> None:
    html = section(page(write_run(tmp_path, BASE, LAST)))
    assert html and "<script" not in html
    assert '<mark>moon<span class="unseen"> (not in the picture)</span></mark>' in html


def test_text_of_answers_cannot_become_markup(tmp_path: Path) -> None:
    evil = described(
        f"id{ATTACK}",
        f"{ATTACK} A moon{ATTACK}",
        absent=("moon", ATTACK.lower()),
        missed=(ATTACK,),
        question=ATTACK,
        truth=f'["{ATTACK}"]',
    )
    html = page(write_run(tmp_path, [evil], [evil]))
    assert "<script>alert" not in html and "alert(" in section(html)


def test_of_many_pictures_some_are_shown_and_the_page_says_how_many(tmp_path: Path) -> None:
    base = [described(f"p{at}", "A moon.", absent=MOON) for at in range(200)]
    last = [described(f"p{at}", "A star." if at < 150 else "A moon.", absent=MOON * (at >= 150)) for at in range(200)]
    html = section(page(write_run(tmp_path, base, last)))
    assert html.count('<article class="case">') == 2 * MAX_SHOWN_A_GROUP <= MAX_SHOWN
    text = words(html)
    assert f"{2 * MAX_SHOWN_A_GROUP} of 200 are on this page" in text
    assert f"150 of 200 pictures; {MAX_SHOWN_A_GROUP} shown" in text


def test_of_many_versions_the_first_the_last_and_some_between_are_shown(tmp_path: Path) -> None:
    html = section(page(write_run(tmp_path, *[BASE] * 11)))
    labels = re.findall(r"<dt>(.*?)</dt>", html.split("</article>")[0])
    assert (len(labels), labels[0], labels[-1]) == (MAX_VERSIONS, "base", "after round 10")
    assert f"{MAX_VERSIONS} of 11 versions are shown" in words(html)


def test_pictures_that_every_version_was_asked_come_before_those_that_some_were_not(tmp_path: Path) -> None:
    base = [described(key, "A moon.", absent=MOON) for key in ("few", "all")]
    last = [described(key, "A star.") for key in ("few", "all")]
    html = section(page(write_run(tmp_path, base, last[1:], last)))
    assert html.index(">all ") < html.index(">few ")


def test_what_only_one_of_them_answered_is_not_compared(tmp_path: Path) -> None:
    some = [*LAST[:2], described("new", "A star.")]
    assert "of 2 pictures" in words(section(page(write_run(tmp_path, BASE, some))))
    (tmp_path / "eval" / "version_001.parquet").unlink()
    assert section(page(tmp_path)) == ""
    assert section(page(write_run(tmp_path, BASE, some[2:]))) == ""


def test_without_descriptions_the_questions_are_compared(tmp_path: Path) -> None:
    base = [answered("q1", "No.", is_right=False), answered("q2", "Yes.", is_right=True)]
    last = [answered("q1", "Yes.", is_right=True), answered("q2", "Yes.", is_right=True)]
    text = words(section(page(write_run(tmp_path, base, last))))
    assert "Mended: the base was wrong, the last version is not 1 of 2 questions" in text
    assert "base No. after round 1 Yes." in text and "Underlined" not in text


def test_a_picture_is_small_on_the_page_however_large_it_was(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(png(900, 700))
    asked = described("a", "A star.", image=str(tmp_path / "p.png"))
    html = section(page(write_run(tmp_path, [asked], [asked])))
    assert 'alt="picture a"' in html and len(html) < 40_000


def test_a_version_whose_answers_cannot_be_read_is_named_and_costs_no_other(tmp_path: Path) -> None:
    run = write_run(tmp_path, BASE, LAST, LAST, named=False)
    (run / "eval" / "version_001.parquet").write_bytes(b"PAR1 nothing")
    (run / "eval" / "version_x.parquet").write_bytes(b"")
    html = page(run)
    assert "eval/version_001.parquet could not be read" in words(html)
    assert "policy version 2" in section(html)


@pytest.mark.parametrize(
    ("text", "absent", "found"),
    [
        ("A moon, moons and moonlight.", ("moon",), ["moon", "moons"]),
        ("Hot-dogs near a HOT  dog and a dog", ("hot dog",), ["HOT  dog"]),
        ("Hot-dogs near a HOT  dog and a dog", ("hot-dogs", "hot dog"), ["Hot-dogs", "HOT  dog"]),
        ("Hot-dogs", ("hot dog",), ["Hot-dogs"]),  # of a run whose marks do not say how it stands there
        ("a hot dog", ("dog", "hot dog"), ["hot dog"]),
        ("boxes", ("box",), ["boxes"]),
        ("c++ (a|b)", ("c++", "(a|b)"), ["c++", "(a|b)"]),
    ],
)
def test_words_are_found_as_they_stand_in_the_answer(text: str, absent: tuple[str, ...], found: list[str]) -> None:
    parts = marked_parts(described("a", text, absent=absent))
    assert "".join(part for part, _ in parts) == text
    assert [part for part, is_absent in parts if is_absent] == found
