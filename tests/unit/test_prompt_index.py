"""Stretches of prompt files: read anywhere and by anybody, they give what a reader of the whole file gives."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import tiny_config
from PIL import Image
from tars import write_tar

from csr_ray.app import run as app_run
from csr_ray.app.run import _reader
from csr_ray.config.schema import Data
from csr_ray.data.images import check_image, load_image
from csr_ray.data.index import Index
from csr_ray.data.prompts import PromptFile, read_prompts
from csr_ray.data.reading import LocalReader, Piece, Rules, read_job, scan_piece
from csr_ray.data.rows import RowFile
from csr_ray.data.sources import is_large
from csr_ray.errors import ConfigError
from csr_ray.methods.base import method_of
from csr_ray.records import Prompt, Rejection
from csr_ray.stages.state import RunState
from csr_ray.stages.turn import Turn
from csr_ray.store.digests import short_hash
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder

RED = (255, 0, 0)


def png(colour: tuple[int, int, int] = RED) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def record(key: object) -> dict:
    return {"id": key, "image": "a.png", "prompt": f"Describe {key}."}


RECORDS = [
    *map(record, range(20)),
    {"id": "no picture", "prompt": "?"},
    *map(record, (3, "é€😀" * 40, 7, "x", 3)),
    {"id": "e", "image": "a.png", "prompt": ""},
    *map(record, range(30, 45)),
    record("x"),
]


def write(folder: Path, name: str, records: Sequence[dict]) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        rows = [{**row, "id": str(row["id"])} for row in records]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif name.endswith(".csv"):
        lines = [f'{row["id"]},{row.get("image", "")},"{row["prompt"]}"' for row in records]
        lines[4] = lines[4][:-1] + '\nin two lines"'
        path.write_bytes("\r\n".join(["", "id,image,prompt", *lines[:9], "", *lines[9:]]).encode())
    elif name == "list.json":
        path.write_text(json.dumps(records))
    else:
        encoding = "utf-16" if "utf16" in name else "utf-8-sig" if "mark" in name else "utf-8"
        lines = [json.dumps(row, ensure_ascii=False) for row in records]
        path.write_bytes("\n".join([*lines[:5], " ", '{"id":', "", *lines[5:], ""]).encode(encoding))
    return path


FILES = ("p.jsonl", "p.csv", "p.parquet", "list.json", "utf16.jsonl", "mark.jsonl", "no_name_for_it")


class BackwardsReader:
    """Reads every piece and every job by itself, the last first, with few rows together; gives them in order."""

    def scan(self, files: Sequence[RowFile], *, pieces: Sequence[Piece], rules: Rules, limit: int | None) -> Iterator:
        done = [
            list(scan_piece(files[piece.file], piece.stretch, number=number, rules=rules))
            for number, piece in reversed(list(enumerate(pieces)))
        ]
        for chunks in reversed(done):
            yield from chunks

    def read(self, files: Sequence[RowFile], *, jobs: Iterator, rules: Rules) -> Iterator[Prompt | Rejection]:
        done = [list(read_job(files[job.file], job, rules=rules)) for job in reversed(list(jobs))]
        for items in reversed(done):
            yield from items

    def rows_together(self, file: RowFile) -> int | None:
        return 3 if file.rows_together else None


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and chunks so small that a short file has many."""
    monkeypatch.setattr("csr_ray.data.rows._PIECE_BYTES", 150)
    monkeypatch.setattr("csr_ray.data.rows._TABLE_ROWS_TOGETHER", 3)
    monkeypatch.setattr("csr_ray.data.reading._ROWS_A_CHUNK", 3)


def everything(stream: PromptFile) -> tuple[list, list]:
    return [replace(item, source="") for item in stream.take()], list(stream.rejections())


@pytest.mark.parametrize("limit", [None, 5, 30, 1000])
@pytest.mark.parametrize("name", FILES)
def test_pieces_that_are_read_by_themselves_are_the_file(
    folder: Path, fine: None, name: str, limit: int | None
) -> None:
    path = str(write(folder, name, RECORDS))
    expected = read_prompts(path, images=None, limit=limit)
    assert len(expected[0]) > 4
    for reader in (BackwardsReader(), LocalReader()):
        stream = PromptFile(path, images=None, limit=limit, reader=reader)
        assert everything(stream) == expected
        assert [item.id for item in stream.stream()] == [prompt.id for prompt in expected[0]]
        assert stream.hashes().tolist() == [short_hash(prompt.id) for prompt in expected[0]]


@pytest.mark.parametrize("name", FILES)
def test_prompts_say_where_they_stand_whoever_reads_them(folder: Path, fine: None, name: str) -> None:
    path = str(write(folder, name, RECORDS))
    whole = [row.source for row in RowFile(path).rows()]
    stream = PromptFile(path, images=None, limit=None, reader=BackwardsReader())
    sources = [prompt.source for prompt in stream.stream()]
    assert len(sources) > 30
    assert sources == [prompt.source for prompt in stream.take()]
    assert sorted([*sources, *(item.source for item in stream.rejections())], key=whole.index) == whole


@pytest.mark.parametrize("name", FILES)
def test_any_part_can_be_chosen_and_goes_on_behind_the_last(folder: Path, fine: None, name: str) -> None:
    stream = PromptFile(str(write(folder, name, RECORDS)), images=None, limit=None, reader=BackwardsReader())
    ids = [prompt.id for prompt in stream.take()]
    for start, num in ((0, 7), (5, stream.num), (stream.num - 2, 9), (stream.num + 3, 4), (2, 0)):
        expected = [ids[(start + offset) % len(ids)] for offset in range(num)]
        chosen = np.arange(num) % 5 == 2
        assert [item.id for item in stream.take(start=start, num=num)] == expected
        assert [item.id for item in stream.stream(start=start, num=num)] == expected
        some = [key for key, is_chosen in zip(expected, chosen, strict=True) if is_chosen]
        assert [item.id for item in stream.stream(start=start, num=num, chosen=chosen)] == some
        assert stream.hashes(start=start, num=num).tolist() == [short_hash(key) for key in expected]


def test_one_row_longer_than_a_piece_belongs_to_the_piece_it_begins_in(folder: Path, fine: None) -> None:
    records = [record(0), {**record(1), "prompt": "long " * 200}, record(2)]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
    stream = PromptFile(str(folder / "p.jsonl"), images=None, limit=None, reader=BackwardsReader())
    assert [(item.id, item.source) for item in stream.stream()] == [
        ("0", "p.jsonl:1"),
        ("1", "p.jsonl:2"),
        ("2", "p.jsonl:3"),
    ]


# ---- folders ----


def test_a_folder_is_its_files_in_the_order_of_their_names(folder: Path, fine: None) -> None:
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    (data / "images" / "a.png").write_bytes(png())
    (data / "b.jsonl").write_text("\n".join(json.dumps(record(key)) for key in (1, 2, 2)))
    write(data, "a.parquet", [record(key) for key in (5, 6, 1)])
    (data / "c.csv").write_text("id,image,prompt\n6,a.png,again\n9,a.png,fine\n")
    for passed_over in ("_SUCCESS", ".hidden.jsonl", "notes.md"):
        (data / passed_over).write_text("nothing to read")
    for reader in (None, BackwardsReader()):
        stream = PromptFile(str(data), images=None, limit=None, reader=reader)
        assert [prompt.id for prompt in stream.take()] == ["5", "6", "1", "2", "9"]
        assert {prompt.image for prompt in stream.take()} == {str(data / "images" / "a.png")}
        assert [(item.source, item.reason.split("; ")[1]) for item in stream.rejections()] == [
            ("b.jsonl:1", "it is first used at a.parquet:row 3"),
            ("b.jsonl:3", "it is first used at b.jsonl:2"),
            ("c.csv:2", "it is first used at a.parquet:row 2"),
        ]
    assert everything(stream) == read_prompts(str(data), images=None, limit=None)


def test_a_folder_that_holds_nothing_to_read_is_a_config_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.prompts = .*a folder in which no file ends in \.jsonl"):
        PromptFile(str(folder), images=None, limit=None)
    (folder / "a.jsonl").write_text("{}")
    (folder / "b.jsonl.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^data\.prompts = .*b\.jsonl\.gz is compressed"):
        PromptFile(str(folder), images=None, limit=None)


def test_a_folder_of_a_store_is_its_files(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/many/2.jsonl", json.dumps(record("second")).encode())
    memory.pipe("/many/1.jsonl", json.dumps(record("first")).encode())
    memory.pipe("/many/images/a.png", png())
    stream = PromptFile("memory://many", images=None, limit=None)
    assert [prompt.id for prompt in stream.take()] == ["first", "second"]
    assert {prompt.image for prompt in stream.take()} == {"memory://many/images/a.png"}


@pytest.mark.parametrize(
    ("reader", "num_mib", "is_local"),
    [
        ("auto", (1,), True),
        ("auto", (40, 23), True),
        ("auto", (40, 24), False),
        ("local", (40, 24), True),
        ("ray", (1,), False),
    ],
)
def test_large_sources_are_read_on_the_cluster_unless_it_is_said_otherwise(
    tmp_path: Path, reader: str, num_mib: tuple[int, ...], is_local: bool
) -> None:
    for number, size in enumerate(num_mib):
        with (tmp_path / f"{number}.jsonl").open("wb") as file:
            file.truncate(size * 2**20)
    data = Data(prompts=str(tmp_path), reader=reader)
    assert isinstance(_reader(data, cluster=mock.Mock()), LocalReader) == is_local


def test_what_nobody_may_read_is_not_looked_at_to_see_whether_it_is_large() -> None:
    with mock.patch("fsspec.core.url_to_fs", side_effect=AssertionError("asked fsspec")):
        assert not is_large("ssh://host/p.jsonl")
        assert not is_large("https://host/p.jsonl")


# ---- the kept index ----


def forbid_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptFile, "_walk", lambda *_: pytest.fail("walked the files again"))


@pytest.mark.parametrize("name", FILES)
def test_a_source_that_has_an_index_is_not_walked_again(
    folder: Path, fine: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, kept = str(write(folder, name, RECORDS)), folder / "kept"
    first = PromptFile(path, images=None, limit=30, index_folder=kept)
    forbid_walks(monkeypatch)
    second = PromptFile(path, images=None, limit=30, index_folder=kept)
    assert everything(second) == everything(first) == read_prompts(path, images=None, limit=30)
    assert isinstance(second._index.hashes, np.memmap)


def rewritten(path: Path) -> None:
    path.write_text(path.read_text().replace("Describe 4.", "Explain  4."))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_text(path.read_text() + "\n{}"), id="longer"),
        pytest.param(rewritten, id="written again in the same size"),
        pytest.param(lambda path: {"limit": 3}, id="another limit"),
        pytest.param(lambda path: {"urls": True}, id="other rules"),
        pytest.param(lambda path: {"refuses_what": "csr"}, id="another method"),
        pytest.param(lambda path: (path.parent / "kept").rename(path.parent / "gone"), id="lost"),
        pytest.param(lambda path: damage(path.parent / "kept"), id="damaged"),
    ],
)
def test_an_index_of_something_else_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    path = write(folder, "p.jsonl", RECORDS)
    options: dict = {"images": None, "limit": None, "index_folder": folder / "kept"}
    PromptFile(str(path), **options)
    changed = change(path)
    forbid_walks(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="walked"):
        PromptFile(str(path), **{**options, **(changed if isinstance(changed, dict) else {})})


def test_an_index_is_not_used_once_a_file_that_the_method_refuses_by_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(app_run, "is_large", lambda source: True)
    prompts, edits = tmp_path / "p.jsonl", tmp_path / "edits.jsonl"
    rows = [{"id": str(at), "image": "a.png", "prompt": "What?", "truth": "A star."} for at in range(3)]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    config = tiny_config(method="povid", data={"prompts": str(prompts)}, povid={"rejected": str(edits)})

    def usable() -> list[str]:
        opened = app_run._open_prompts(config, method=method_of(config))
        assert len(list(opened.rejections())) + opened.num == 3
        return [prompt.id for prompt in opened.take()]

    for ids in (["0", "1"], ["1"], ["0", "1", "2"]):
        edits.write_text("\n".join(json.dumps({"id": one, "rejected": "A moon."}) for one in ids))
        assert usable() == ids
    with monkeypatch.context() as unchanged:
        forbid_walks(unchanged)
        assert usable() == ["0", "1", "2"]


def damage(kept: Path) -> None:
    (hashes,) = kept.glob("*/hashes.npy")
    hashes.write_bytes(hashes.read_bytes()[:-8])


def test_what_is_left_of_a_cycle_is_known_without_reading_a_row(
    folder: Path, fine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, "p.jsonl", [record(number) for number in range(40)])
    options: dict = {"images": None, "limit": None, "index_folder": folder / "kept"}
    PromptFile(str(path), **options)
    config = tiny_config(folder / "run", data={"prompts": str(path)})
    run = RunFolder(folder / "run")
    state = RunState(config=config, folder=run, journal=Journal(run.journal), model="m", versions={})
    cycle = state.cycles(0)[0]
    for unit, numbers in (("second", range(20, 24)), ("first", range(3, 8)), ("gone", range(90, 92))):
        ids = [str(number) for number in numbers]
        state.journal.commit("rollout", **cycle.key, unit=unit, ids=ids, position=0, prompts=len(ids), failed=0)
    parsed: list[str] = []
    loads = json.loads
    monkeypatch.setattr("csr_ray.data.rows.json.loads", lambda line: parsed.append(line) or loads(line))
    turn = Turn(state, PromptFile(str(path), **options), cycle=cycle)
    assert turn.num_to_do == 31
    assert [(unit.name, unit.position) for unit in turn.committed()] == [("first", 3), ("second", 20), ("gone", 42)]
    assert parsed == []
    left = [(position, item.id) for position, item in turn.to_do()]
    assert left == [(number, str(number)) for number in range(40) if number not in (*range(3, 8), *range(20, 24))]
    assert len(parsed) == 31, "nor are the rows read again that are done"


def test_an_index_that_cannot_be_kept_is_made_again(folder: Path) -> None:
    path = write(folder, "p.jsonl", RECORDS)
    (folder / "kept").write_text("a file, where a folder would have to be")
    for _ in range(2):
        assert PromptFile(str(path), images=None, limit=None, index_folder=folder / "kept").num > 30


def test_the_positions_of_an_index_are_those_of_its_prompts() -> None:
    def index(usable: list[int], num_rows: list[int]) -> Index:
        num = len(num_rows)
        return Index(
            files=np.zeros(num, dtype=np.int64),
            begins=np.arange(num) * 10,
            ends=np.arange(num) * 10 + 10,
            numbers=np.arange(num) * 100 + 1,
            num_rows=np.array(num_rows),
            usable=np.array(usable, dtype=np.uint8),
            hashes=np.zeros(sum(usable), dtype=np.uint64),
            first_files=np.zeros(0, dtype=np.int64),
            first_numbers=np.zeros(0, dtype=np.int64),
        )

    #              chunk 0   chunk 1   chunk 2   chunk 3
    some = index([1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1], [3, 3, 3, 3])
    assert some.num == 7

    def jobs(begin: int, end: int, chosen: list[int] | None = None, most: int | None = 3) -> list[tuple]:
        flags = None if chosen is None else np.array(chosen, dtype=np.bool_)
        found = some.prompts(begin, end, chosen=flags, together=lambda _: most)
        return [(job.stretch.begin, job.stretch.end, job.stretch.number, list(job.flags)) for job in found]

    assert jobs(0, 2) == [(0, 10, 1, [1, 0, 1])]
    assert jobs(1, 4) == [(0, 10, 1, [0, 0, 1]), (20, 30, 201, [1, 1, 0])]
    assert jobs(4, 7, most=6) == [(20, 40, 201, [0, 0, 1, 0, 1, 1])]
    assert jobs(0, 7, [0, 0, 0, 0, 0, 0, 1]) == [(30, 40, 301, [0, 0, 1])]
    assert jobs(0, 7, [1, 0, 0, 0, 0, 0, 1], most=None) == [(0, 40, 1, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])]
    assert jobs(3, 3) == []


# ---- tars ----


def describe(**values: object) -> bytes:
    return json.dumps({"prompt": "Describe it.", **values}).encode()


def test_a_tar_is_read_where_it_lies(folder: Path, fine: None) -> None:
    blue = (0, 0, 255)
    write_tar(
        folder / "shard.tar",
        [
            ("d/1.jpg", png()),
            ("d/1.json", describe(id="first", truth="red")),
            ("d/2.txt", b"Was ist das?"),
            ("d/2.seg.png", png()),
            ("d/2.png", png(blue)),
            (f"{'long/' * 60}3.png", png()),
            (f"{'long/' * 60}3.json", describe()),
        ],
    )
    prompts, rejections = read_prompts(str(folder / "shard.tar"), images=None, limit=None)
    assert rejections == []
    assert [(p.id, p.text, p.truth) for p in prompts] == [
        ("first", "Describe it.", "red"),
        ("d/2", "Was ist das?", None),
        (f"{'long/' * 60}3", "Describe it.", None),
    ]
    assert [load_image(p.image).getpixel((0, 0)) for p in prompts] == [RED, blue, RED]
    for reader in (LocalReader(), BackwardsReader()):
        stream = PromptFile(str(folder / "shard.tar"), images=None, limit=None, reader=reader)
        assert [replace(item, source="") for item in stream.stream()] == prompts
        assert [item.source for item in stream.take(start=1)] == [f"shard.tar:sample {n}" for n in (2, 3, 1)]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("1.json", describe())], "image is missing"),
        ([("1.png", png())], "prompt is missing"),
        ([("1.png", png()), ("1.json", b"{")], "not JSON"),
        ([("1.png", png()), ("1.json", b"[1]")], "its .json is a list, not a record"),
        ([("1.png", png()), ("1.json", describe(id=1.5))], "id is a number"),
        ([("1.png", png()), ("1.txt", b"\xff")], "prompt is not valid Unicode"),
        ([("1.png", b"no picture"), ("1.txt", b"?")], "not an image"),
        ([("1.png", b""), ("1.txt", b"?")], "empty file"),
        ([("1.png", png()), ("1.json", b" " * (4 * 2**20 + 1))], "a row of more than 4 million characters"),
    ],
)
def test_a_bad_sample_costs_only_itself(folder: Path, members: list, reason: str) -> None:
    sound = [("2.png", png()), ("2.txt", b"?")]
    write_tar(folder / "x.tar", [*members, *sound])
    (prompt,), (rejection,) = read_prompts(str(folder / "x.tar"), images=None, limit=None)
    assert prompt.id == "2"
    assert rejection.source == "x.tar:sample 1"
    assert reason in rejection.reason


def test_links_and_devices_in_a_tar_are_no_pictures(folder: Path) -> None:
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE), ("3.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("1.txt")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"?"))
    prompts, rejections = read_prompts(str(folder / "x.tar"), images=None, limit=None)
    assert (prompts, [item.reason for item in rejections]) == ([], ["image is missing"])


@pytest.mark.parametrize("at", [1, 600, 1536, 2500])
def test_a_damaged_or_cut_tar_is_a_config_error(folder: Path, at: int) -> None:
    path = write_tar(folder / "x.tar", [(f"{number}.png", png()) for number in range(5)])
    data = path.read_bytes()
    path.write_bytes(data[:at])
    if at > 512:
        with pytest.raises(ConfigError, match=r"^data\.prompts = .*not readable as a tar"):
            PromptFile(str(path), images=None, limit=None)
    path.write_bytes(data[:1024] + b"x" * 100 + data[1124:])
    with pytest.raises(ConfigError, match=r"^data\.prompts = .*not readable as a tar: damaged at byte 1024"):
        PromptFile(str(path), images=None, limit=None)


def test_a_header_that_would_fill_the_memory_is_refused(folder: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    with (folder / "x.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**32 + 4096)  # sparse
    with pytest.raises(ConfigError, match=r"^data\.prompts = .*not readable as a tar: a header of more than 4 MiB"):
        PromptFile(str(folder / "x.tar"), images=None, limit=None)


def test_a_compressed_tar_is_refused(folder: Path) -> None:
    with tarfile.open(folder / "x.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(ConfigError, match=r"^data\.prompts = .*a compressed one has to be unpacked"):
        PromptFile(str(folder / "x.tar"), images=None, limit=None)


def test_a_picture_of_a_tar_of_a_store_is_read_in_part(folder: Path) -> None:
    import fsspec

    path = write_tar(folder / "x.tar", [("1.png", png()), ("1.txt", b"?"), ("2.png", png()), ("2.txt", b"?")])
    fsspec.filesystem("memory").pipe("/tars/x.tar", path.read_bytes())
    prompts, rejections = read_prompts("memory://tars/x.tar", images=None, limit=None)
    assert ([p.id for p in prompts], rejections) == (["1", "2"], [])
    assert prompts[1].image.startswith("tar://memory://tars/x.tar#")
    assert load_image(prompts[1].image).getpixel((0, 0)) == RED


def test_a_name_leads_to_members_of_tars_only(folder: Path) -> None:
    path = write_tar(folder / "x.tar", [("1.png", png()), ("1.txt", b"?")])
    (prompt,), _ = read_prompts(str(path), images=None, limit=None)
    (folder / "plain").write_bytes(b"\0" * 512 + png())
    num_bytes = len(png())
    for name, reason in (
        (f"tar://{folder}/plain#512+{num_bytes}/1.png", "the tar has changed"),
        (f"tar://{path}#512+{num_bytes - 1}/1.png", "the tar has changed"),
        (f"tar://{path}#513+{num_bytes}/1.png", "the tar has changed"),
        (f"tar://{path}#0+{num_bytes}/1.png", "the tar has changed"),
        (f"tar://{path}#999999+{num_bytes}/1.png", "the tar has changed"),
        (f"tar://{path}#512+{2**40}/1.png", "larger than"),
        (f"tar://{path}#512+0/1.png", "empty file"),
        (f"tar://{path}", "not named as tar://ARCHIVE#"),
        ("tar:///dev/zero#512+100/1.png", "a device, not a file"),
        ("tar://https://host/x.tar#512+100/1.png", "fetch the tar"),
        ("tar://tar:///x.tar#1+2/y.tar#512+100/1.png", "fetch the tar"),
        ("tar://ssh://host/x.tar#512+100/1.png", "scheme 'ssh'"),
    ):
        error = check_image(name)
        assert error is not None and reason in str(error), name
        assert error.fault == "input"
    assert check_image(prompt.image) is None
    path.write_bytes(b"")
    assert "the tar has changed" in str(check_image(prompt.image))
