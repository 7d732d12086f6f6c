"""Prompt files: what is usable is used, everything else is set aside with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csr_ray.data.images import load_image
from csr_ray.data.prompts import PromptFile, find_readable, read_prompts
from csr_ray.errors import ConfigError
from csr_ray.records import Prompt

RED = (255, 0, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with four sound images, a.png to d.png."""
    for name in "abcd":
        Image.new("RGB", (8, 8), RED).save(tmp_path / f"{name}.png")
    return tmp_path


def rows(*ids: str) -> list[dict]:
    return [{"id": key, "image": f"{key}.png", "prompt": f"Describe {key}."} for key in ids]


def write_jsonl(path: Path, records: list) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def read(path: Path, *, images: Path | None = None, limit: int | None = None) -> tuple[list, list]:
    return read_prompts(str(path), images=None if images is None else str(images), limit=limit)


def open_stream(path: Path, *, images: Path | None = None, limit: int | None = None) -> PromptFile:
    return PromptFile(str(path), images=None if images is None else str(images), limit=limit)


def read_stream(path: Path, *, limit: int | None = None) -> tuple[list, list]:
    """What `read_prompts` gives for a file whose images are all sound, read from the stream."""
    stream = open_stream(path, limit=limit)
    return [replace(prompt, source="") for prompt in stream.take()], list(stream.rejections())


def only_reason(folder: Path, record: object) -> str:
    """Why a single record is set aside; also holds that it is, and where it is said to stand."""
    line = record if isinstance(record, bytes) else json.dumps(record).encode()
    (folder / "one.jsonl").write_bytes(line)
    prompts, rejections = read(folder / "one.jsonl")
    assert prompts == []
    (rejection,) = rejections
    assert rejection.source == "one.jsonl:1"
    return rejection.reason


# ---- formats ----


def test_every_format_gives_the_same_prompts(folder: Path) -> None:
    records = [{**row, "truth": "red"} for row in rows("a", "b")]
    write_jsonl(folder / "p.jsonl", records)
    (folder / "p.json").write_text(json.dumps(records, indent=1))
    (folder / "p.csv").write_text("id,image,prompt,truth\na,a.png,Describe a.,red\nb,b.png,Describe b.,red\n")
    pq.write_table(pa.Table.from_pylist(records), folder / "p.parquet")
    results = [read(folder / f"p.{suffix}") for suffix in ("jsonl", "json", "csv", "parquet")]
    assert [rejections for _, rejections in results] == [[]] * 4
    assert all(prompts == results[0][0] for prompts, _ in results)
    assert [(p.id, p.text, p.truth) for p in results[0][0]] == [
        ("a", "Describe a.", "red"),
        ("b", "Describe b.", "red"),
    ]
    assert results[0][0][0].image == str(folder / "a.png")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_suffix_that_says_nothing_is_replaced_by_a_look_inside(folder: Path, suffix: str) -> None:
    test_every_format_gives_the_same_prompts(folder)
    (folder / f"p.{suffix}").rename(folder / "prompts.txt")
    assert len(read(folder / "prompts.txt")[0]) == 2


def test_jsonl_under_the_name_json_is_read(folder: Path) -> None:
    assert len(read(write_jsonl(folder / "p.json", rows("a", "b")))[0]) == 2
    assert len(read(write_jsonl(folder / "p.json", rows("a")))[0]) == 1


def test_the_csr_release_is_read_as_it_is(folder: Path) -> None:
    records = [
        {"id": "a", "image": "a.png", "input": "<image>\nWhat's happening in the scene?"},
        {"id": "b", "image": "b.png", "input": "What is this photo about'?\n<image>"},
    ]
    (folder / "CSR-Prompt-Dataset-12k.json").write_text(json.dumps(records))
    prompts, rejections = read(folder / "CSR-Prompt-Dataset-12k.json", images=folder)
    assert rejections == []
    assert [p.text for p in prompts] == ["What's happening in the scene?", "What is this photo about'?"]


def test_no_image_placeholder_is_left_in_a_prompt(folder: Path) -> None:
    record = {"id": "a", "image": "a.png", "prompt": "<image> Look <im<image>age> here <image>"}
    (prompt,), _ = read(write_jsonl(folder / "p.jsonl", [record]))
    assert "<image>" not in prompt.text
    assert prompt.text.startswith("Look")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n  \n"])
def test_byte_order_marks_windows_line_ends_and_blank_lines_are_fine(
    folder: Path, encoding: str, newline: str
) -> None:
    lines = [json.dumps({**row, "prompt": "Où est-ce ?"}, ensure_ascii=False) for row in rows("a", "b")]
    (folder / "p.jsonl").write_bytes((newline.join(lines) + newline).encode(encoding))
    prompts, rejections = read(folder / "p.jsonl")
    assert ([p.text for p in prompts], rejections) == (["Où est-ce ?"] * 2, [])
    header = ["id,image,prompt", "a,a.png,Où ?", "b,b.png,Où ?"]
    (folder / "p.csv").write_bytes((newline.join(header) + newline).encode(encoding))
    assert [p.id for p in read(folder / "p.csv")[0]] == ["a", "b"]


def test_a_unicode_line_separator_inside_a_json_string_ends_no_line(folder: Path) -> None:
    line = '{"id": "a", "image": "a.png", "prompt": "one\u2028two"}'
    (folder / "p.jsonl").write_text(line, encoding="utf-8")
    (prompt,), _ = read(folder / "p.jsonl")
    assert prompt.text == "one\u2028two"


def test_a_carriage_return_alone_ends_no_line(folder: Path) -> None:
    (folder / "p.jsonl").write_bytes(b'{"id": "a",\r"image": "a.png", "prompt": "?"}\r\n{"id": "b"}')
    (prompt,), (rejection,) = read(folder / "p.jsonl")
    assert (prompt.id, rejection.source) == ("a", "p.jsonl:2")


def test_whole_number_ids_become_text(folder: Path) -> None:
    (prompt,), _ = read(write_jsonl(folder / "p.jsonl", [{"id": 17, "image": "a.png", "prompt": "?"}]))
    assert prompt.id == "17"


# ---- rows set aside ----


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b'{"id": "a", "image"', "not JSON"),
        (b'{"id": "a", "image": "a.png", "prompt": "\xff"}', "not valid Unicode"),
        (b"[" * 20000, "not JSON"),
        ("text", "not a record of id, image, prompt but text"),
        (None, "not a record of id, image, prompt but null"),
        ({"image": "a.png", "prompt": "?"}, "id is missing"),
        ({"id": " ", "image": "a.png", "prompt": "?"}, "id is empty"),
        ({"id": True, "image": "a.png", "prompt": "?"}, "id is true or false"),
        ({"id": 1.5, "image": "a.png", "prompt": "?"}, "id is a number"),
        ({"id": "a", "prompt": "?"}, "image is missing"),
        ({"id": "a", "image": ["a.png"], "prompt": "?"}, "image is a list"),
        ({"id": "a", "image": {"bytes": "x"}, "prompt": "?"}, "embedded"),
        ({"id": "a", "image": "a.png"}, "prompt is missing"),
        ({"id": "a", "image": "a.png", "prompt": ""}, "prompt is empty"),
        ({"id": "a", "image": "a.png", "input": " <image>\n"}, "input is empty but for the image placeholder"),
        ({"id": "a", "image": "a.png", "prompt": 3}, "prompt is a number"),
        ({"id": "a", "image": "a.png", "prompt": "\ud800"}, "not valid Unicode"),
        ({"id": "a", "image": "a.png", "prompt": "?", "truth": ["x"]}, "truth is a list"),
        ({"id": "a", "image": "none.png", "prompt": "?"}, "none.png: no such file"),
        ({"id": "a", "image": "a\0.png", "prompt": "?"}, "image has a NUL in its name"),
        ({"id": "a", "image": "x" * 5000, "prompt": "?"}, "no such file"),
        ({"id": "a", "image": ".", "prompt": "?"}, "a folder"),
        ({"id": "a", "image": "memory://none.png", "prompt": "?"}, "no such file"),
        ({"id": "a", "image": "nosuch://none.png", "prompt": "?"}, "image is a URL of the scheme 'nosuch'"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason(folder: Path, record: object, reason: str) -> None:
    assert reason in only_reason(folder, record)


def test_a_bad_row_between_good_ones_costs_only_itself(folder: Path) -> None:
    first, second, third = (json.dumps(row) for row in rows("a", "b", "c"))
    (folder / "p.jsonl").write_text(f"{first}\n\n{second[:-9]}\n{third}\n")
    prompts, rejections = read(folder / "p.jsonl")
    assert [p.id for p in prompts] == ["a", "c"]
    assert [(r.id, r.source) for r in rejections] == [(None, "p.jsonl:3")]  # line 2 is blank, and counted


def test_a_list_among_the_lines_is_set_aside_and_a_list_alone_is_a_list_of_rows(folder: Path) -> None:
    prompts, (rejection,) = read(write_jsonl(folder / "p.jsonl", [[1, 2], *rows("a")]))
    assert [p.id for p in prompts] == ["a"]
    assert (rejection.source, rejection.reason) == ("p.jsonl:1", "not a record of id, image, prompt but a list")
    assert [p.id for p in read(write_jsonl(folder / "p.jsonl", [rows("a", "b")]))[0]] == ["a", "b"]


def test_the_second_row_with_an_id_is_set_aside_and_names_the_first(folder: Path) -> None:
    records = [*rows("a"), {"id": "1", "image": "b.png", "prompt": "?"}, {"id": 1, "image": "c.png", "prompt": "?"}]
    prompts, (rejection,) = read(write_jsonl(folder / "p.jsonl", records))
    assert [p.image for p in prompts] == [str(folder / "a.png"), str(folder / "b.png")]
    assert (rejection.id, rejection.source) == ("1", "p.jsonl:3")
    assert "p.jsonl:2" in rejection.reason


def test_csv_rows_of_the_wrong_length_and_quoted_line_breaks(folder: Path) -> None:
    text = 'id,image,prompt\na,a.png,"Describe,\nplease"\nb,b.png,"One\n", two\nc,c.png\nd,d.png,Fine\n'
    (folder / "p.csv").write_text(text)
    prompts, rejections = read(folder / "p.csv")
    assert [(p.id, p.text) for p in prompts] == [("a", "Describe,\nplease"), ("d", "Fine")]
    # Row a takes lines 2 and 3, b lines 4 and 5, so c is on line 6.
    assert [(r.id, r.source) for r in rejections] == [("b", "p.csv:4"), ("c", "p.csv:6")]
    assert "1 more fields than columns" in rejections[0].reason
    assert rejections[1].reason == "prompt is missing"


def test_rows_of_lists_and_tables_are_named_by_their_number(folder: Path) -> None:
    records = [*rows("a"), {"id": "x", "image": "none.png", "prompt": "?"}]
    (folder / "p.json").write_text(json.dumps(records))
    pq.write_table(pa.Table.from_pylist(records), folder / "p.parquet")
    assert read(folder / "p.json")[1][0].source == "p.json:item 2"
    assert read(folder / "p.parquet")[1][0].source == "p.parquet:row 2"


def test_a_hugging_face_image_column_is_used_by_its_path(folder: Path) -> None:
    record = {"id": "a", "image": {"bytes": None, "path": "a.png"}, "prompt": "?"}
    pq.write_table(pa.Table.from_pylist([record]), folder / "p.parquet")
    assert read(folder / "p.parquet")[0][0].image == str(folder / "a.png")


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_an_empty_file_has_no_prompts_and_no_rejections(folder: Path, name: str) -> None:
    (folder / name).write_text("\n")
    assert read(folder / name) == ([], [])


# ---- files that cannot be used at all ----


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.json", b"[{]", "not JSON"),
        ("p.json", b"hello", "neither a JSON list nor JSONL"),
        ("p.json", b'{"data":\n [1]}', "found one object with keys data"),
        ("p.csv", b"a;b\n1;2\n", "needs the columns id, image, prompt"),
        ("p.parquet", b"PAR1 not really", "not readable as Parquet"),
        ("p.parquet", b"", "not readable as Parquet"),
        ("p.xyz", b"\x00\x01\x02", "unknown format"),
        ("p", b"", "unknown format"),
    ],
)
def test_a_file_of_no_known_form_is_a_config_error(folder: Path, name: str, content: bytes, says: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"^data\.prompts = ") as error:
        read(folder / name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError) as of_stream:
        open_stream(folder / name)
    assert str(of_stream.value) == str(error.value)


def test_missing_files_and_folders_are_config_errors_that_name_the_key(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.prompts = .*none\.jsonl.*no such file"):
        read(folder / "none.jsonl")
    with pytest.raises(ConfigError, match=r"data\.prompts = .*a folder"):
        read(folder)
    path = write_jsonl(folder / "p.jsonl", rows("a"))
    with pytest.raises(ConfigError, match=r"data\.images = .*no such folder"):
        read(path, images=folder / "none")


# ---- where images are looked for ----


def test_images_are_found_beside_the_file_then_in_images_and_only_in_a_given_folder(folder: Path) -> None:
    for sub in ("images", "other"):
        (folder / sub).mkdir()
    (folder / "b.png").rename(folder / "images" / "b.png")
    (folder / "c.png").rename(folder / "other" / "c.png")
    path = write_jsonl(folder / "p.jsonl", rows("a", "b", "c"))
    prompts, rejections = read(path)
    assert [p.image for p in prompts] == [str(folder / "a.png"), str(folder / "images" / "b.png")]
    assert f"{folder / 'c.png'}: no such file" in rejections[0].reason
    assert [p.image for p in read(path, images=folder / "other")[0]] == [str(folder / "other" / "c.png")]


def test_image_paths_are_absolute_where_their_folder_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(folder / "p.jsonl", rows("a"))
    (folder / "images").mkdir()
    (folder / "b.png").rename(folder / "images" / "b.png")
    write_jsonl(folder / "q.jsonl", rows("b"))
    monkeypatch.chdir(folder)
    assert read(folder / "images" / ".." / "p.jsonl")[0][0].image == str(folder / "a.png")
    assert read(Path("p.jsonl"))[0][0].image == "a.png"
    assert read(Path("p.jsonl"), images=Path("."))[0][0].image == "a.png"
    assert read(Path("q.jsonl"))[0][0].image == "images/b.png"


def test_files_behind_a_url_are_read_through_fsspec(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/set/p.jsonl", json.dumps(rows("a")[0]).encode())
    memory.pipe("/set/images/a.png", (folder / "a.png").read_bytes())
    (prompt,), rejections = read_prompts("memory://set/p.jsonl", images=None, limit=None)
    assert rejections == []
    assert prompt.image == "memory://set/images/a.png"
    assert load_image(prompt.image).getpixel((0, 0)) == RED


# ---- limit and progress ----


def test_reading_stops_at_the_limit_of_usable_prompts_in_file_order(folder: Path) -> None:
    (folder / "b.png").unlink()
    path = write_jsonl(folder / "p.jsonl", rows("a", "b", "c", "d"))
    prompts, rejections = read(path, limit=2)
    assert [p.id for p in prompts] == ["a", "c"]
    assert [r.id for r in rejections] == ["b"]


def test_progress_counts_rows_and_ends_at_its_total(folder: Path) -> None:
    (folder / "b.png").unlink()
    path = write_jsonl(folder / "p.jsonl", rows("a", "b", "c", "d"))
    seen: list[tuple[int, int]] = []
    read_prompts(str(path), images=None, limit=2, on_progress=lambda done, total: seen.append((done, total)))
    # Two are wanted; once b turns out bad, three rows have to be looked at.
    assert seen == [(1, 2), (2, 3), (3, 3)]


def test_order_is_the_files_though_images_are_checked_in_threads(folder: Path) -> None:
    Image.new("RGB", (1500, 1500), RED).save(folder / "a.png")  # the slowest comes first
    records = [{"id": i, "image": "a.png" if i % 7 == 0 else "b.png", "prompt": "?"} for i in range(200)]
    prompts, _ = read(write_jsonl(folder / "p.jsonl", records))
    assert [p.id for p in prompts] == [str(i) for i in range(200)]


# ---- as a stream ----


@pytest.mark.parametrize("limit", [None, 1, 4, 9, 100])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.parquet", "lines.json", "lines.txt"])
def test_the_stream_gives_what_read_prompts_gives(folder: Path, name: str, encoding: str, limit: int | None) -> None:
    # The long texts put letters of several bytes on the borders of any buffer that a file is decoded through.
    records = [{**row, "prompt": f"{'é€😀' * 3000}{row['id']}"} for row in rows("a", "b")]
    records += [*rows("c", "a", "d"), {"id": "e", "image": "a.png", "prompt": ""}, *rows("b", "b")]
    records += [{"id": f"f{number}", "image": "a.png", "prompt": "?"} for number in range(5)]
    if name == "p.parquet":
        pq.write_table(pa.Table.from_pylist(records), folder / name, row_group_size=3)
    elif name == "p.csv":
        lines = [",".join((record["id"], record["image"], record["prompt"])) for record in records]
        (folder / name).write_bytes("\r\n".join(["id,image,prompt", *lines]).encode(encoding))
    elif name == "p.json":
        (folder / name).write_bytes(json.dumps(records, ensure_ascii=False).encode(encoding))
    else:
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (folder / name).write_bytes("\n \n".join([*lines, "", '{"id":']).encode(encoding))
    prompts, rejections = read(folder / name, limit=limit)
    assert read_stream(folder / name, limit=limit) == (prompts, rejections)
    assert open_stream(folder / name, limit=limit).num == len(prompts) == min(9, limit or 9)


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_bad_bytes_spoil_their_own_row_of_a_stream(folder: Path, name: str) -> None:
    lines = [b'{"id": "%d", "image": "a.png", "prompt": "\xe2\x82"}' % number for number in range(1000)]
    if name == "p.csv":
        lines = [b"id,image,prompt", *(b"%d,a.png,\xe2\x82" % number for number in range(1000))]
    (folder / name).write_bytes(b"\n".join([*lines, lines[-1].replace(b"999", b"b").replace(b"\xe2\x82", b"?")]))
    prompts, rejections = read_stream(folder / name)
    assert [p.id for p in prompts] == ["b"]
    assert rejections == read(folder / name)[1]
    assert {r.reason for r in rejections} == {"prompt is not valid Unicode; save the file as UTF-8"}


def test_each_prompt_of_a_stream_says_where_it_stands(folder: Path) -> None:
    (folder / "p.jsonl").write_text("\n" + "\n\n".join(json.dumps(row) for row in rows("a", "b")))
    (folder / "p.json").write_text(json.dumps(rows("a", "b")))
    (folder / "p.csv").write_text('id,image,prompt\na,a.png,"one\ntwo"\nb,b.png,?\n')
    pq.write_table(pa.Table.from_pylist(rows("a", "b")), folder / "p.parquet")
    sources = {name: [p.source for p in open_stream(folder / name).take()] for name in ("p.jsonl", "p.json")}
    sources |= {name: [p.source for p in open_stream(folder / name).take()] for name in ("p.csv", "p.parquet")}
    assert sources == {
        "p.jsonl": ["p.jsonl:2", "p.jsonl:4"],
        "p.json": ["p.json:item 1", "p.json:item 2"],
        "p.csv": ["p.csv:2", "p.csv:4"],
        "p.parquet": ["p.parquet:row 1", "p.parquet:row 2"],
    }


def test_taking_goes_on_from_a_position_and_wraps_around_after_the_last_prompt(folder: Path) -> None:
    records = [*rows("a"), {"id": "bad"}, *rows("b", "a", "c", "d")]
    stream = open_stream(write_jsonl(folder / "p.jsonl", records))

    def taken(start: int, num: int | None) -> str:
        return "".join(prompt.id for prompt in stream.take(start=start, num=num))

    assert [taken(0, None), taken(1, 2), taken(2, 4), taken(2, None)] == ["abcd", "bc", "cdab", "cdab"]
    assert [taken(4, 2), taken(11, 2), taken(3, 0)] == ["ab", "da", ""]
    limited = open_stream(folder / "p.jsonl", limit=2)
    assert [p.id for p in limited.take(start=1)] == ["b", "a"]


def test_a_file_without_usable_prompts_gives_none(folder: Path) -> None:
    stream = open_stream(write_jsonl(folder / "p.jsonl", [{"id": "a"}]))
    assert (stream.num, list(stream.take(start=3)), len(list(stream.rejections()))) == (0, [], 1)


def watch_parsing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of JSON that are parsed from now on."""
    parsed: list[str] = []
    loads = json.loads
    monkeypatch.setattr("csr_ray.data.rows.json.loads", lambda line: parsed.append(line) or loads(line))
    return parsed


def test_lines_before_the_start_are_not_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_stream(write_jsonl(folder / "p.jsonl", [*rows("a", "b"), {}, *rows("c", "d")]))
    parsed = watch_parsing(monkeypatch)
    assert [p.id for p in stream.take(start=2, num=1)] == ["c"]
    assert len(parsed) == 1


@pytest.mark.parametrize("num_held", [2, 1 << 16])
@pytest.mark.parametrize("limit", [None, 5, 299, 300])
def test_duplicates_far_apart_name_the_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, num_held: int
) -> None:
    monkeypatch.setattr("csr_ray.data.prompts._NUM_IDS_HELD", num_held)
    ids = [*range(300), *range(0, 300, 7), "x", 7, 7]
    write_jsonl(folder / "p.jsonl", [{"id": key, "image": "a.png", "prompt": "?"} for key in ids])
    prompts, rejections = read_stream(folder / "p.jsonl", limit=limit)
    assert (prompts, rejections) == read(folder / "p.jsonl", limit=limit)
    if limit is None:
        assert (len(prompts), len(rejections)) == (301, 45)
        assert rejections[-1].reason == "duplicate id; it is first used at p.jsonl:8"


@pytest.mark.parametrize("limit", [None, 3])
def test_different_ids_with_one_hash_are_all_good(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr("csr_ray.data.reading._hash_of", lambda identity: 7 if identity < "d" else 0)
    path = write_jsonl(folder / "p.jsonl", [{"id": "bad"}, *rows("a", "b", "d", "b", "c")])
    prompts, rejections = read_stream(path, limit=limit)
    assert [p.id for p in prompts] == ["a", "b", "d", "c"][:limit]
    assert [r.source for r in rejections] == ["p.jsonl:1", "p.jsonl:5"][: None if limit is None else 1]


def test_a_limited_stream_reads_no_further_than_it_must(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(folder / "p.jsonl", [*rows("a", "a", "b", "c"), *rows(*map(str, range(1000)))])
    parsed = watch_parsing(monkeypatch)
    assert open_stream(path, limit=2).num == 2
    assert len(parsed) < 10


def test_pictures_inside_a_table_are_not_asked_for(folder: Path) -> None:
    images = [{"bytes": b"x" * 100, "path": "a.png"}, {"bytes": b"x" * 100, "path": None}, None]
    records = [{"id": str(number), "image": image, "prompt": "?"} for number, image in enumerate(images)]
    pq.write_table(pa.Table.from_pylist(records), folder / "p.parquet")
    prompts, rejections = read_stream(folder / "p.parquet")
    assert [p.image for p in prompts] == [str(folder / "a.png")]
    assert [r.reason.split(";")[0] for r in rejections] == ["image is embedded in the file", "image is missing"]


def test_a_stream_behind_a_url_is_read_through_fsspec(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/stream/p.jsonl", write_jsonl(folder / "p.jsonl", rows("a", "b")).read_bytes())
    pq.write_table(pa.Table.from_pylist(rows("a", "b")), folder / "p.parquet")
    memory.pipe("/stream/p.parquet", (folder / "p.parquet").read_bytes())
    for name in ("p.jsonl", "p.parquet"):
        stream = PromptFile(f"memory://stream/{name}", images="memory://pictures", limit=None)
        assert [p.image for p in stream.take()] == ["memory://pictures/a.png", "memory://pictures/b.png"]


@pytest.mark.parametrize("records", [rows("a"), [{}, *rows("b", "c")], [*rows("a"), {}, *rows("c")]])
def test_a_file_that_changes_under_a_stream_is_a_config_error(folder: Path, records: list) -> None:
    stream = open_stream(write_jsonl(folder / "p.jsonl", rows("a", "b", "c")))
    write_jsonl(folder / "p.jsonl", records)
    with pytest.raises(ConfigError, match=r"data\.prompts = .*changed since"):
        list(stream.take())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells how much memory was used at most")
def test_two_hundred_thousand_prompts_take_less_than_20_mib(folder: Path) -> None:
    """The high-water mark of a process of its own; what `getrusage` gives there would begin at that of its parent."""
    text = "Describe what the person in this picture does, and what is around them."
    with (folder / "p.jsonl").open("w") as file:
        for number in range(200_000):
            file.write(f'{{"id": "prompt-{number:08d}", "image": "{number}.png", "prompt": "{text}"}}\n')
    write_jsonl(folder / "few.jsonl", rows("a"))
    code = """
import sys
from csr_ray.data.prompts import PromptFile

def read(path):
    stream = PromptFile(path, images="/", limit=None)
    assert sum(1 for _ in stream.take()) == stream.num

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

read(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
before_kib = status("VmRSS")
read(sys.argv[2])
print(status("VmHWM") - before_kib)
"""
    command = [sys.executable, "-c", code, str(folder / "few.jsonl"), str(folder / "p.jsonl")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20 * 1024


# ---- the first image that can be read ----


def test_looking_for_a_readable_image_ends_at_the_first_and_says_what_was_wrong_before(folder: Path) -> None:
    (folder / "a.png").unlink()
    (folder / "b.png").write_bytes(b"")
    many = [{"id": number, "image": "d.png", "prompt": "?"} for number in range(500)]
    path = write_jsonl(folder / "p.jsonl", [*rows("a", "b", "c"), *many])
    num_taken = 0

    def taken() -> Iterator[Prompt]:
        nonlocal num_taken
        for prompt in open_stream(path).take():
            num_taken += 1
            yield prompt

    found, rejections = find_readable(taken())
    assert found
    assert rejections == read(path, limit=1)[1]
    assert [(r.id, r.source) for r in rejections] == [("a", "p.jsonl:1"), ("b", "p.jsonl:2")]
    assert rejections[1].reason == f"image {folder / 'b.png'}: empty file (0 bytes)"
    assert num_taken < 100


def test_no_image_that_can_be_read_is_found_among_none(folder: Path) -> None:
    path = write_jsonl(folder / "p.jsonl", [{"id": n, "image": "none.png", "prompt": "?"} for n in range(100)])
    found, rejections = find_readable(open_stream(path).take())
    assert (found, [r.id for r in rejections]) == (False, [str(n) for n in range(100)])
    assert find_readable([]) == (False, [])


def test_what_a_method_refuses_is_set_aside_where_it_stands(folder: Path) -> None:
    records = [{**row, "truth": "red"} if row["id"] != "b" else row for row in rows("a", "b", "c")]
    path = write_jsonl(folder / "p.jsonl", records)
    refuses = lambda prompt: None if prompt.truth else "truth is missing"  # noqa: E731
    file = PromptFile(str(path), images=None, limit=2, refuses=refuses)
    assert [prompt.id for prompt in file.take()] == ["a", "c"]
    assert [(item.id, item.source, item.reason) for item in file.rejections()] == [
        ("b", "p.jsonl:2", "truth is missing")
    ]


def test_a_page_of_a_table_that_names_a_text_its_dictionary_has_not_is_refused() -> None:
    """Arrow believes the indices; what lies behind the dictionary is somebody else's memory."""
    import pyarrow as pa

    from csr_ray.data.tables import _records

    wrong = pa.DictionaryArray.from_arrays(pa.array([0, 5], pa.int32()), pa.array(["a"]), safe=False)
    with pytest.raises(pa.ArrowInvalid, match="out of bounds"):
        list(_records(pa.RecordBatch.from_arrays([wrong], names=["id"])))
