"""The pictures of a run's pairs open with `datasets`, wherever they came from and wherever the reader stands."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakes import preference_pair
from PIL import Image
from tars import write_tar
from test_loop import Driver, save_fake_model

from csr_ray.data.embedded import EmbeddedPictures
from csr_ray.data.prompts import PromptFile
from csr_ray.records import Cycle
from csr_ray.store.tables import ExampleReader, Outcome, join_example_units, read_examples, write_example_unit

SIZE = (12, 9)


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", SIZE, (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of four pictures, of redness 0 to 3: two in a tar, a path of a job's, and an absolute one."""
    monkeypatch.chdir(tmp_path)
    members = [
        (f"{at}.{end}", data) for at in range(2) for end, data in (("png", picture(at)), ("txt", b"What is there?"))
    ]
    path = write_tar(tmp_path / "a.tar", members)
    inside = [prompt.image for prompt in PromptFile(str(path), images=None, limit=None).take()]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "2.png").write_bytes(picture(2))
    (tmp_path / "3.png").write_bytes(picture(3))
    return [*inside, "pictures/2.png", str(tmp_path / "3.png")]


def unit(path: Path, names: list[str]) -> Path:
    pairs = [preference_pair(id=name, image=name, chosen_ids=(1,), rejected_ids=(2,)) for name in names]
    write_example_unit(path, examples=pairs, outcome=Outcome(made=len(pairs)))
    return path


def test_datasets_opens_every_picture_from_anywhere(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    joined = tmp_path / "pairs.parquet"
    pictures = EmbeddedPictures()
    join_example_units(joined, units=[unit(tmp_path / "unit.parquet", names)], pictures=pictures)
    assert pictures.num_unread == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    rows = datasets.load_dataset("parquet", data_files=str(joined), split="train", cache_dir=str(elsewhere))
    assert rows.features["image"] == datasets.Image()
    assert [row["image"].getpixel((0, 0))[0] for row in rows] == [0, 1, 2, 3]
    plain = pq.read_table(joined)["image"].to_pylist()
    assert [row["path"] for row in plain] == names
    assert [row["bytes"] for row in plain] == [picture(0), picture(1), picture(2), None], "the last is named only"


def test_who_trains_reads_names_and_no_pictures(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csr_ray.store.tables._PICTURE_BYTES_A_GROUP", len(picture(2)) + len(picture(3)))
    units = [unit(tmp_path / f"{at}.parquet", [name]) for at, name in enumerate(names)]
    joined = tmp_path / "pairs.parquet"
    join_example_units(joined, units=units, pictures=EmbeddedPictures())
    assert pq.read_metadata(joined).num_row_groups == 2, "what is held at once has a limit"
    reader = ExampleReader()
    assert [reader.example(str(joined), row=row).ask.picture.path for row in range(4)] == names
    assert "bytes" not in str(reader._group(str(joined), 0).schema.field("image").type)
    assert [pair.ask.picture.path for pair in read_examples(joined)] == names


def test_a_picture_that_is_gone_is_named_and_counted(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "a.tar").rename(tmp_path / "away.tar")
    pictures = EmbeddedPictures()
    assert pictures(names) == [None, None, picture(2), None]
    assert pictures.num_unread == 2


def test_a_run_over_a_tar_writes_them(tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.policy.weights.save_merged", save_fake_model)
    driver = Driver(tmp_path / "run", run={"rounds": 1})
    driver.has_pictures = True
    driver.prompts = list(PromptFile(str(tmp_path / "a.tar"), images=None, limit=None).take())
    driver.run()
    path = driver.folder.pairs(Cycle(round_index=0))
    assert [row["bytes"] for row in pq.read_table(path)["image"].to_pylist()] == [picture(0), picture(1)]
    assert "cannot be read any more" not in driver.said.getvalue()
    before = path.read_bytes()
    path.write_bytes(b"damaged")
    driver.run()
    assert path.read_bytes() == before, "made again bit for bit"
