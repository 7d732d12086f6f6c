"""Readers of what others wrote, fuzzed: whatever they are given, no error escapes that is not our own.

The suite tries the same few examples each time; with CSR_RAY_LONG_TESTS=1 a thousand new ones.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csr_ray.config.load import load_config, parse_config, to_plain
from csr_ray.data.files import UnreadableError
from csr_ray.data.images import load_image
from csr_ray.data.prompts import PromptFile, read_prompts
from csr_ray.errors import ConfigError, UserError
from csr_ray.evaluation.answers import BENCHMARKS, score_answers
from csr_ray.evaluation.chair import chair_metrics
from csr_ray.evaluation.pope import parse_yes_no
from csr_ray.methods.sima import named_objects, parse_verdict
from csr_ray.records import Prompt, Rejection
from csr_ray.redaction import has_credentials, without_credentials
from csr_ray.rollout.whole_answers import num_sentences
from csr_ray.store.journal import Journal
from csr_ray.store.quarantine import Quarantine

IS_LONG = os.environ.get("CSR_RAY_LONG_TESTS", "0") not in ("", "0")
fuzzed = settings(
    max_examples=1000 if IS_LONG else 60,
    derandomize=not IS_LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", " ", "<image>", "\ud800", "\0", "a" * 70_000, "9" * 5_000, "::", "a://b"]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | TEXTS
    | st.binary(max_size=8).map(repr)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def on_file(content: bytes, *, name: str, use: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return use(path)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with some bytes changed, a piece taken out or put in, or its end cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["flip", "cut", "out", "in"]))
        if change == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[place:]
        elif change == "out":
            del data[place : place + draw(st.integers(1, 40))]
        elif change == "in":
            data[place:place] = draw(st.binary(min_size=1, max_size=20))
    return bytes(data)


# ---- configs ----

SHIPPED = (Path(__file__).resolve().parents[2] / "configs" / "tiny-world.yaml").read_bytes()
PLAIN = to_plain(parse_config({"data": {"prompts": "p.jsonl"}, "policy": {"model": "m"}, "scorer": {"model": "c"}}))
KEYS = [f"{section}.{key}" for section, keys in PLAIN.items() if isinstance(keys, dict) for key in keys]


def read_config(content: bytes, *overrides: str) -> None:
    with suppress(ConfigError):
        on_file(content, name="c.yaml", use=lambda path: load_config(path, overrides=overrides))


@fuzzed
@given(st.binary(max_size=200) | st.text(max_size=200).map(encoded) | damaged(SHIPPED))
def test_config_files(content: bytes) -> None:
    read_config(content)


@fuzzed
@given(VALUES)
def test_configs_of_other_values(tree: Any) -> None:
    with suppress(yaml.YAMLError, UnicodeEncodeError):
        read_config(encoded(yaml.safe_dump(tree)))


@fuzzed
@given(st.sampled_from(KEYS), VALUES)
def test_configs_with_one_odd_value(key: str, value: Any) -> None:
    section, name = key.split(".")
    changed = {**PLAIN, section: {**PLAIN[section], name: value}}
    with suppress(ConfigError):
        parse_config(changed)


@fuzzed
@given(
    st.lists(
        st.text(max_size=30) | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=30)), max_size=3
    )
)
def test_overrides(overrides: list[str]) -> None:
    read_config(SHIPPED, *overrides)


@pytest.mark.parametrize(
    "text",
    [
        "run: 2024-99-99",
        "run: !!int x",
        "run: !!float []",
        "run: !!timestamp x",
        "run: !!binary x",
        "? [a]\n: b",
        "? {a: b}\n: c",
        "run: !!python/object/apply:os.system [x]",
        "run: &a [*a]",
        "run: &a {b: *a}",
        "<<: 5",
        "<<: [a]",
        "[" * 5_000,
        "run: " + "{a: " * 3_000 + "1" + "}" * 3_000,
        "run: " + "9" * 5_000,
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "1: 2\n",
        "null: 1\n",
        "run: {1: 2, x: 3}",
        'run: {dir: "\\ud800"}',
        "\0",
    ],
)
def test_yaml_that_python_stumbles_over_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        on_file(encoded(text), name="c.yaml", use=load_config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2_000


# ---- prompt files ----

ROWS = [{"id": str(n), "image": f"{n}.png", "prompt": "What is it?", "truth": "A dog."} for n in range(3)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"id,image,prompt,truth\n" + b"".join(b'%d,%d.png,"What, is it?",A dog.\n' % (n, n) for n in range(3))


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def read_rows(content: bytes, *, name: str) -> None:
    def use(path: Path) -> None:
        try:
            stream = PromptFile(str(path), images=None, limit=None)
            items = [*stream.rejections(), *stream.take()]
        except ConfigError as error:
            assert "\n" not in str(error)
            return
        assert all(isinstance(item, Prompt | Rejection) for item in items)
        Quarantine(path.parent / "q.jsonl").add(item for item in items if isinstance(item, Rejection))
        prompts, _ = read_prompts(str(path), images=None, limit=2)
        assert prompts == []  # there are no pictures

    on_file(content, name=name, use=use)


@fuzzed
@given(st.sampled_from(["p.jsonl", "p.json", "p.csv", "p.parquet", "p"]), st.binary(max_size=300))
def test_prompt_files_of_any_bytes(name: str, content: bytes) -> None:
    read_rows(content, name=name)


@fuzzed
@given(damaged(JSONL))
def test_damaged_jsonl(content: bytes) -> None:
    read_rows(content, name="p.jsonl")


@fuzzed
@given(damaged(json.dumps(ROWS, indent=1).encode()))
def test_damaged_lists(content: bytes) -> None:
    read_rows(content, name="p.json")


@fuzzed
@given(damaged(CSV))
def test_damaged_csv(content: bytes) -> None:
    read_rows(content, name="p.csv")


@fuzzed
@given(damaged(parquet(ROWS)))
def test_damaged_parquet(content: bytes) -> None:
    read_rows(content, name="p.parquet")


@fuzzed
@given(
    st.lists(st.dictionaries(st.sampled_from(["id", "image", "prompt", "input", "truth", "x"]), VALUES), max_size=3)
)
def test_rows_of_other_values(rows: list[dict[str, Any]]) -> None:
    read_rows(json.dumps(rows).encode(), name="p.json")
    read_rows("".join(json.dumps(row) + "\n" for row in rows).encode(), name="p.jsonl")


@fuzzed
@given(st.text(max_size=60))
def test_names_of_pictures(name: str) -> None:
    with suppress(UnreadableError):
        load_image(name)


# ---- pictures ----


def picture(kind: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.effect_noise((24, 16), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO"])
def test_damaged_pictures(kind: str) -> None:
    @settings(fuzzed, max_examples=1000 if IS_LONG else 25)
    @given(damaged(picture(kind)))
    def try_it(content: bytes) -> None:
        with suppress(UnreadableError):
            on_file(content, name="x", use=lambda path: load_image(str(path)))

    try_it()


# ---- the run folder ----


def journal_of(folder: Path) -> bytes:
    journal = Journal(folder / "journal.jsonl")
    journal.commit("model", name="m", revision=None)
    journal.commit("rollout", round=0, phase="main", unit="u", ids=["a", "b"], prompts=2, tokens=5, seconds=0.5)
    journal.commit("train", round=0, phase="main", num_steps=5)
    return (folder / "journal.jsonl").read_bytes()


def quarantine_of(folder: Path) -> bytes:
    Quarantine(folder / "q.jsonl").add(
        [Rejection(id=None, source="p.jsonl:1", reason="é"), Rejection(id="a", source="", reason="")]
    )
    return (folder / "q.jsonl").read_bytes()


with tempfile.TemporaryDirectory() as _folder:
    JOURNAL, QUARANTINE = journal_of(Path(_folder)), quarantine_of(Path(_folder))


@fuzzed
@given(st.binary(max_size=200) | damaged(JOURNAL))
def test_journals(content: bytes) -> None:
    with suppress(UserError):
        on_file(content, name="journal.jsonl", use=Journal)


@fuzzed
@given(st.binary(max_size=200) | damaged(QUARANTINE))
def test_quarantines(content: bytes) -> None:
    more = Rejection(id="\ud800", source="\0", reason="é\n")
    on_file(content, name="q.jsonl", use=lambda path: [Quarantine(path).add([more]) for _ in range(2)])


# ---- what models and judges say ----


@fuzzed
@given(st.text() | st.lists(st.sampled_from(["[[", "]]", "1", "2", " ", "no", "."]), max_size=12).map("".join))
def test_what_a_model_says(text: str) -> None:
    assert parse_verdict(text) in (None, 1.0, 2.0)
    assert parse_yes_no(text) in (True, False)
    assert num_sentences(text) <= len(text)
    named_objects(text, objects=("dog", "(", "a b"))
    chair_metrics([text], truth=[["dog"]])


@fuzzed
@given(
    st.sampled_from(BENCHMARKS), st.lists(VALUES, max_size=3), st.lists(VALUES, max_size=3), st.binary(max_size=60)
)
def test_files_of_answers_and_of_truth(benchmark: str, said: list[Any], true: list[Any], more: bytes) -> None:
    known = [{"question_id": 1, "id": 1, "image_id": 1, "text": "No.", "label": "no", "objects": [{"kind": "dog"}]}]

    def use(path: Path) -> None:
        truth = path.parent / "truth.jsonl"
        truth.write_text("".join(json.dumps(row) + "\n" for row in [*known, *true]))
        with suppress(UserError):
            score_answers(benchmark, answers=path, truth=truth)
        with suppress(UserError):
            score_answers(benchmark, answers=truth, truth=path)

    lines = "".join(json.dumps(row) + "\n" for row in [*known, *said]).encode()
    on_file(lines + more, name="answers.jsonl", use=use)


OBJECTS = st.lists(TEXTS | st.fixed_dictionaries({"kind": TEXTS, "colour": TEXTS}) | VALUES, max_size=3)


@fuzzed
@given(st.sampled_from(["chair", "world"]), st.lists(OBJECTS, min_size=1, max_size=3), TEXTS)
def test_truth_of_odd_names(benchmark: str, objects: list[Any], text: str) -> None:
    rows = [{"id": n, "objects": names, "text": text} for n, names in enumerate(objects)]

    def use(path: Path) -> None:
        with suppress(UserError):
            score_answers(benchmark, answers=path, truth=path)

    on_file("".join(json.dumps(row) + "\n" for row in rows).encode(), name="t.jsonl", use=use)


# ---- credentials ----


@fuzzed
@given(st.text(max_size=60) | st.builds("{}://{}:{}@{}".format, st.text(max_size=5), TEXTS, TEXTS, TEXTS))
def test_redaction_ends_and_is_whole(text: str) -> None:
    assert not has_credentials(without_credentials(text)) or "***" in without_credentials(text)
