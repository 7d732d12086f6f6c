"""ROUGE-L against values that others have published or that can be counted by hand."""

from __future__ import annotations

import pytest

from csr_ray.evaluation.rouge import longest_common, rouge_l


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        # Lin 2004, section 3.1: the two candidates of its example, with beta = 1.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        # The example of the package rouge-score: P = 4/7, R = 4/4.
        ("the quick brown dog jumps on the log", "the quick brown fox jumps over the lazy dog", 10 / 17),
        ("testing one two", "testing", 2 * 1 * (1 / 3) / (1 + 1 / 3)),
        ("There is a star.", "there IS a star", 1.0),
        ("a b c", "d e f", 0.0),
        ("", "a", 0.0),
        ("a", "...", 0.0),
        ("Größe 7", "größe 7!", 1.0),
    ],
)
def test_the_f_measure_of_the_longest_common_words(text: str, reference: str, expected: float) -> None:
    assert rouge_l(text, reference=reference) == pytest.approx(expected)
    assert rouge_l(reference, reference=text) == pytest.approx(expected), "precision and recall weigh the same"


def test_the_longest_common_words_may_have_gaps_but_keep_their_order() -> None:
    assert longest_common(["a", "x", "b", "y", "c"], ["a", "b", "c"]) == 3
    assert longest_common(["c", "b", "a"], ["a", "b", "c"]) == 1
    assert longest_common(["a", "a", "a"], ["a", "a"]) == 2
    assert longest_common(["b", "a", "b", "c"], ["a", "b", "b", "c"]) == 3
