"""`csr-ray pairs`: the data set has the run's pairs and, if asked to, its pictures, and says what it is."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from described_runs import PublishedDriver
from fakes import preference_pair
from huggingface_hub import DatasetCard
from rich.console import Console
from s3_server import s3_door
from test_loop import cycle

from csr_ray.__main__ import main
from csr_ray.app.pairs import export_pairs
from csr_ray.data.embedded import EmbeddedPictures
from csr_ray.errors import ConfigError, DamageError, NoDataError
from csr_ray.records import Example, Target
from csr_ray.store.data_set import ExampleFile, write_data_set
from csr_ray.store.tables import Outcome, join_example_units, read_examples, write_example_unit

IDS = ["p0", "p1", "p2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> PublishedDriver:
    driver = PublishedDriver(tmp_path_factory.mktemp("published") / "run")
    driver.run()
    return driver


@pytest.fixture
def driver(finished: PublishedDriver, tmp_path: Path) -> PublishedDriver:
    """A copy that a test may spoil; its pictures are those of the first."""
    shutil.copytree(finished.folder.root, tmp_path / "run")
    copy = finished.at(tmp_path / "run")
    copy.__class__ = PublishedDriver
    return copy  # type: ignore[return-value]


def load(folder: Path, cache: Path, *name: str) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), *name, split="train", cache_dir=str(cache))


def export(driver: PublishedDriver, output: Path, **flags: Any) -> Any:
    given = {"rounds": (), "embeds": False, **flags}
    return export_pairs(str(driver.folder.root), output=output, console=Console(quiet=True), **given)


def test_datasets_reads_every_pair_and_picture_from_anywhere(
    driver: PublishedDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(driver, tmp_path / "out", embeds=True)
    moved = tmp_path / "elsewhere" / "set"
    moved.parent.mkdir()
    (tmp_path / "out").rename(moved)
    monkeypatch.chdir(moved.parent)
    rows = load(moved, tmp_path / "cache")
    assert rows.features["image"] == datasets.Image()
    assert (rows["round"], rows["phase"]) == ([1] * 3 + [2] * 3, ["main"] * 6)
    assert rows["id"] == IDS * 2
    assert [row["image"].getpixel((0, 0))[0] for row in rows] == [0, 1, 2] * 2
    examples = [one for index in range(2) for one in read_examples(driver.folder.pairs(cycle(index)))]
    for row, example in zip(rows, examples, strict=True):
        assert row["prompt"] == [{"role": "user", "content": example.ask.text}]
        assert row["chosen"] == [{"role": "assistant", "content": example.chosen.text}]
        assert row["rejected"] == [{"role": "assistant", "content": example.rejected.text}]
        assert row["chosen_reward"] == example.chosen.reward
        assert tuple(row["rejected_ids"]) == example.rejected.token_ids
        assert row["policy_version"] == example.policy_version


def test_pictures_are_the_files_bytes_and_no_path_of_the_machine_is_kept(
    driver: PublishedDriver, tmp_path: Path
) -> None:
    export(driver, tmp_path / "out", embeds=True)
    (file,) = sorted((tmp_path / "out" / "data").iterdir())
    assert file.name == "train-00000-of-00001.parquet"
    pictures = pq.read_table(file)["image"].to_pylist()
    assert [one["path"] for one in pictures] == [f"{id}.png" for id in IDS] * 2
    assert [one["bytes"] for one in pictures] == [Path(prompt.image).read_bytes() for prompt in driver.prompts] * 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "jane" not in card and str(tmp_path) not in card


def test_without_them_pictures_are_named_where_they_are_and_the_card_says_so(
    driver: PublishedDriver, tmp_path: Path
) -> None:
    export(driver, tmp_path / "out")
    rows = load(tmp_path / "out", tmp_path / "cache").cast_column("image", datasets.Image(decode=False))
    assert rows[0]["image"] == {"bytes": None, "path": driver.prompts[0].image}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The pictures are not in it" in card and "--embed-images" in card


def test_the_card_is_the_hubs_and_counts_what_is_there(driver: PublishedDriver, tmp_path: Path) -> None:
    export(driver, tmp_path / "out", embeds=True)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    found = card.data.to_dict()
    assert found["size_categories"] == ["n<1K"] and found["task_categories"] == ["image-text-to-text"]
    assert {"csr_ray", "csr", "preference", "dpo"} <= set(found["tags"]) and "license" not in found
    assert found["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    text = card.text
    assert "6 pairs in 1 Parquet file" in text and "| 2 | main | 3 | pairs |" in text
    assert "The pictures stand in the files, byte for byte" in text
    columns = pq.read_schema(tmp_path / "out" / "data" / "train-00000-of-00001.parquet").names
    described = {name.replace("\\", "") for row in text.splitlines() if row.startswith("| ") for name in
                 row.split("|")[1].strip().split(", ")}  # fmt: skip
    assert set(columns) <= described


def test_rounds_that_are_asked_for_are_the_ones_that_are_written(driver: PublishedDriver, tmp_path: Path) -> None:
    export(driver, tmp_path / "out", rounds=(2,))
    assert load(tmp_path / "out", tmp_path / "cache")["policy_version"] == [1] * 3
    with pytest.raises(ConfigError, match=r"^--rounds = 3, 4: RUN_DIR = .* has pairs of round 1, 2$"):
        export(driver, tmp_path / "other", rounds=(1, 3, 4))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", ["0", "one", ",", "1,-2"])
def test_rounds_that_are_no_numbers_are_bad_usage(
    driver: PublishedDriver, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pairs", str(driver.folder.root), "--out", str(tmp_path / "out"), f"--rounds={text}"])
    assert ended.value.code == 2 and "numbers of rounds from 1, such as 1,3" in capsys.readouterr().err


def test_a_picture_that_is_gone_takes_its_rows_with_it_and_is_counted(
    driver: PublishedDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Path(driver.prompts[1].image)
    data = gone.read_bytes()
    gone.unlink()
    try:
        assert main(["pairs", str(driver.folder.root), "--out", str(tmp_path / "out"), "--embed-images"]) == 0
    finally:
        gone.write_bytes(data)
    said = capsys.readouterr().out
    assert "4 pairs of rounds 1, 2" in said and "2 pairs left out: the picture cannot be read" in said
    assert load(tmp_path / "out", tmp_path / "cache")["id"] == ["p0", "p2"] * 2
    assert "2 more were left out: the picture cannot be read." in (tmp_path / "out" / "README.md").read_text()


def test_where_no_picture_is_left_there_is_no_set(
    driver: PublishedDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedPictures, "__call__", lambda self, paths: [None] * len(paths))
    assert main(["pairs", str(driver.folder.root), "--out", str(tmp_path / "out"), "--embed-images"]) == 3
    assert "nothing is left of its pairs (the picture cannot be read)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_never_written_over(
    driver: PublishedDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["pairs", str(driver.folder.root), "--out", str(tmp_path / "out")]) == 2
    assert "is there already; name a new folder, or remove it" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert main(["pairs", str(driver.folder.root), "--out", str(tmp_path / "empty")]) == 0


def test_damaged_pairs_are_not_given_away(driver: PublishedDriver, tmp_path: Path) -> None:
    path = driver.folder.pairs(cycle(1))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"round_001/pairs\.parquet has not the bytes that were written"):
        export(driver, tmp_path / "out")
    export(driver, tmp_path / "first", rounds=(1,))
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_and_a_run_without_pairs_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no journal\.jsonl in it; name the run\.dir of a run"):
        export_pairs(str(tmp_path), output=tmp_path / "out", embeds=False, console=Console(quiet=True))
    young = PublishedDriver(tmp_path / "young")
    with pytest.raises(KeyboardInterrupt):
        young.run(stop_after=1)
    with pytest.raises(NoDataError, match="no pairs yet; they are there when the first round's rollouts are done"):
        export(young, tmp_path / "out")


def test_a_run_that_goes_on_gives_the_pairs_of_the_rounds_that_are_decided(tmp_path: Path) -> None:
    driver = PublishedDriver(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        driver.run(fail_at=0)
    assert not driver.folder.summary.exists()
    export(driver, tmp_path / "out", embeds=True)
    assert load(tmp_path / "out", tmp_path / "cache")["id"] == IDS


def test_a_run_at_a_url_gives_its_pairs(
    driver: PublishedDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csr_ray.store.objects import open_store

    with s3_door() as door:
        assert door is not None
        url = f"s3://bucket/{tmp_path.name}/run"
        store = open_store(url, key="run.dir")
        for path in driver.folder.root.rglob("*"):
            if path.is_file():
                store.upload(path, name=path.relative_to(driver.folder.root).as_posix())
        monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
        assert main(["pairs", url, "--out", str(tmp_path / "out"), "--embed-images"]) == 0
    assert load(tmp_path / "out", tmp_path / "cache")["id"] == IDS * 2


# ---- the files ----


def source_of(tmp_path: Path, *, num: int, num_answers: int = 2, index: int = 0) -> ExampleFile:
    """A file of examples that name pictures which are not there."""
    pairs = [
        preference_pair(id=f"p{at}", image=f"/none/{at}.png", chosen_ids=(1,), rejected_ids=(2,)) for at in range(num)
    ]
    if num_answers == 1:
        pairs = [single(pair) for pair in pairs]
    unit, joined = tmp_path / f"unit{index}{num_answers}.parquet", tmp_path / f"joined{index}{num_answers}.parquet"
    write_example_unit(unit, examples=pairs, outcome=Outcome(made=num), num_answers=num_answers)
    join_example_units(joined, units=[unit], num_answers=num_answers)
    return ExampleFile(path=joined, round_index=index, phase="main", num_answers=num_answers)


def single(pair: Example) -> Example:
    from dataclasses import replace

    chosen = pair.chosen
    target = Target(role="answer", text="A.", token_ids=chosen.token_ids, logp=-1.0, reward=1.0, nodes=chosen.nodes)
    return replace(pair, targets=(target,))


def test_a_large_set_is_cut_into_files_and_read_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path, num=200)
    monkeypatch.setattr("csr_ray.store.data_set._GROUP_BYTES", 40_000)
    size = 1000
    asked: list[int] = []
    noise = random.Random(0)  # equal pictures would be packed to one

    def pictures(names: Any) -> list[bytes | None]:
        asked.append(len(names))
        return [noise.randbytes(size) for _ in names]

    written = write_data_set(tmp_path / "out", sources=[source], pictures=pictures, file_bytes=50_000)
    assert max(asked) <= 16 and sum(asked) == 200
    assert len(written.files) > 2 and written.num_rows == written.num_pictures == 200
    assert written.files[0] == f"data/train-00000-of-{len(written.files):05d}.parquet"
    for name in written.files:
        metadata = pq.read_metadata(tmp_path / "out" / name)
        rows = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
        assert max(rows) * size < 40_000 + 16 * size + 16 * 1000
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["id"] == [f"p{at}" for at in range(200)]


def test_single_answers_are_a_set_of_their_own(tmp_path: Path) -> None:
    source = source_of(tmp_path, num=3, num_answers=1)
    written = write_data_set(tmp_path / "out", sources=[source], pictures=None)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert written.num_rows == 3 and "chosen" not in rows.features
    assert rows["answer"][0] == [{"role": "assistant", "content": "A."}]


def test_a_run_with_pairs_and_answers_has_both_by_name(
    driver: PublishedDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {
        "pairs": [source_of(tmp_path, num=4)],
        "answers": [source_of(tmp_path, num=2, num_answers=1, index=1)],
    }
    monkeypatch.setattr("csr_ray.app.pairs._sources", lambda run, *, rounds: sources)
    export(driver, tmp_path / "out")
    assert len(load(tmp_path / "out", tmp_path / "cache")) == 4, "pairs by default"
    assert len(load(tmp_path / "out", tmp_path / "cache", "answers")) == 2
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert [(one["config_name"], one.get("default")) for one in card.data.to_dict()["configs"]] == [
        ("pairs", True), ("answers", None),
    ]  # fmt: skip
    assert "Columns of the answers:" in card.text


_MEASURED = """
import random, re, sys, time
from pathlib import Path
from csr_ray.store.data_set import ExampleFile, write_data_set

num_bytes = int(sys.argv[3])
noise = random.Random(0)
pictures = lambda names: [noise.randbytes(num_bytes) for _ in names]
peak_kib = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before, started_s = peak_kib(), time.perf_counter()
source = ExampleFile(path=Path(sys.argv[1]), round_index=0, phase="main", num_answers=2)
written = write_data_set(Path(sys.argv[2]), sources=[source], pictures=pictures if num_bytes else None)
print(written.num_rows, len(written.files), written.num_bytes // 2**20, before // 1024, peak_kib() // 1024,
      round(time.perf_counter() - started_s))
"""


@pytest.mark.long
@pytest.mark.parametrize("picture_bytes", [0, 20_000])
def test_a_hundred_thousand_pairs_need_a_few_hundred_megabytes(tmp_path: Path, picture_bytes: int) -> None:
    """Prints rows, files, MiB written, MiB of memory before and at the peak, and seconds."""
    units = []
    for at in range(100):
        units.append(tmp_path / f"unit{at}.parquet")
        text = f"A red circle is on the left of picture {at}. " * 5
        pairs = [
            preference_pair(
                id=f"p{at}-{row}",
                image=f"/none/{at}-{row}.jpg",
                prompt="Describe this image in detail.",
                chosen=f"{text}{row}",
                rejected=f"{text}{row} again",
                chosen_ids=tuple(range(60)),
                rejected_ids=tuple(range(1, 61)),
            )
            for row in range(1000)
        ]
        write_example_unit(units[-1], examples=pairs, outcome=Outcome(made=1000))
    join_example_units(tmp_path / "joined.parquet", units=units)
    command = [sys.executable, "-c", _MEASURED, tmp_path / "joined.parquet", tmp_path / "out", picture_bytes]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    rows, files, written_mib, before_mib, peak_mib, seconds = map(int, done.stdout.split())
    print(f"{rows:,} pairs, {files} files, {written_mib} MiB; {before_mib} to {peak_mib} MiB of memory; {seconds} s")
    assert rows == 100_000 and files == 1 + written_mib * 2**20 // 510_000_000
    assert peak_mib - before_mib < 300
