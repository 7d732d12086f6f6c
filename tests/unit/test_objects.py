"""Objects at a URL, on a real S3 and in memory: one contract, and one line for each thing that can be wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import Door, Trouble, s3_door

from csr_ray.errors import ConfigError
from csr_ray.store.objects import ObjectStore, StoreError, check_store_url, is_url, local_path, open_store


@pytest.fixture(scope="module")
def one_door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


@pytest.fixture
def door(one_door: Door) -> Iterator[Door]:
    yield one_door
    one_door.trouble = Trouble()


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "s3":
        return request.getfixturevalue("door").store(f"{tmp_path.name}/run")
    return open_store(f"memory://{tmp_path.name}/run", key="test", allow_memory=True)


def test_an_object_is_created_once_and_written_over_as_often_as_asked(store: ObjectStore) -> None:
    assert store.read("a/b") is None and store.list() == {}
    assert store.create("a/b", b"one") and not store.create("a/b", b"two")
    assert store.read("a/b") == b"one"
    store.write("a/b", b"three")
    assert store.read("a/b") == b"three"
    before = store.list()["a/b"]
    store.write("a/b", b"four!")
    after = store.list()["a/b"]
    assert (before.num_bytes, after.num_bytes) == (5, 5) and before.tag != after.tag and after.modified_s > 1e9


def test_files_go_up_and_come_down_as_they_are(store: ObjectStore, tmp_path: Path) -> None:
    file, back = tmp_path / "file", tmp_path / "deep" / "back"
    file.write_bytes(os.urandom(9 << 20))  # more than what goes up in one piece
    assert store.upload(file, name="x/file", only_new=True) and not store.upload(file, name="x/file", only_new=True)
    assert store.download("x/file", path=back, modified_s=1e9) and back.read_bytes() == file.read_bytes()
    assert back.stat().st_mtime == 1e9
    file.write_bytes(b"small")
    assert not store.upload(file, name="x/file", only_new=True) and store.upload(file, name="x/file")
    assert store.read("x/file") == b"small"
    assert not store.download("x/none", path=tmp_path / "none") and not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "none", name="x/none")


def test_lists_go_deep_and_removing_what_is_gone_is_no_error(store: ObjectStore) -> None:
    for name in ("a", "b/c", "b/d/e", "bb"):
        store.write(name, b"x")
    assert set(store.list()) == {"a", "b/c", "b/d/e", "bb"} and set(store.list("b")) == {"b/c", "b/d/e"}
    store.remove(["a", "none", "b/d/e"])
    assert set(store.list()) == {"b/c", "bb"}
    other = store.sibling(f"{store.url}.old")
    store.copy("b/c", to=other)
    assert set(other.list()) == {"b/c"} and set(store.list()) == {"b/c", "bb"}


def test_a_store_that_is_away_says_so_in_one_line_and_with_its_own_error(door: Door, tmp_path: Path) -> None:
    store = door.store(tmp_path.name)
    door.trouble = Trouble(away=True)
    for call in (
        lambda: store.read("a"),
        lambda: store.create("a", b"x"),
        store.list,
        lambda: store.remove(["a"]),
        lambda: store.download("a", path=tmp_path / "a"),
    ):
        with pytest.raises(StoreError) as error:
            call()
        assert "\n" not in str(error.value) and door.endpoint in str(error.value)


def refusal(url: str) -> str:
    with pytest.raises(ConfigError) as error:
        open_store(url, key="run.dir")
    said = str(error.value)
    assert said.startswith(f"run.dir = {url!r}: ") and "\n" not in said
    return said


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://bucket", "names no folder in the bucket; write s3://BUCKET/FOLDER"),
        ("s3://bucket/", "names no folder in the bucket"),
        ("s3:///run", "names no folder"),
        ("s3://bucket//run", "empty or dots"),
        ("s3://bucket/../run", "empty or dots"),
        ("simplecache::s3://bucket/run", "no store of the scheme 'simplecache::s3'"),
        ("s3://bucket/run::x", "a chain of URLs"),
        ("ftp://host/run", "no store of the scheme 'ftp' is known; name a folder, or a URL of s3://"),
        ("https://host/run", "no store of the scheme 'https'"),
        ("memory://a/run", "a store within the process, which ends with it"),
    ],
)
def test_a_url_that_names_no_folder_of_a_store_is_refused_without_asking_anybody(url: str, says: str) -> None:
    assert says in refusal(url)
    with pytest.raises(ConfigError):
        check_store_url(url, key="run.dir")


def test_what_the_store_refuses_is_one_line_with_a_remedy(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal("s3://no-such-bucket/run")
    assert "bucket does not exist" in said and said.endswith("make the bucket, or name another")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = refusal("s3://bucket/run")
    assert "Could not connect" in said and "see that AWS_ENDPOINT_URL, the region and the network are right" in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", "here")
    assert "Invalid endpoint: here" in refusal("s3://bucket/run")


def test_missing_credentials_are_named_and_wrong_ones_never_said(
    door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{door.endpoint}/")  # so that no instance of before is found
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal("s3://bucket/run")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hUshHush42")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{door.endpoint}//")
    door.trouble = Trouble(denied=1.0)
    said = refusal("s3://bucket/run")
    assert "see that the credentials of this machine are right" in said and "hUshHush42" not in said


@pytest.mark.parametrize(("url", "extra"), [("s3://b/run", "s3"), ("gs://b/run", "gcs"), ("abfs://b/run", "azure")])
def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)
    known = sys.modules["fsspec.registry"]._registry
    for scheme in list(known):
        monkeypatch.delitem(known, scheme)
    assert f"pip install 'csr_ray[{extra}]', on every node" in refusal(url)


def test_a_file_url_is_a_path_and_every_other_url_is_none() -> None:
    assert is_url("s3://b/x") and is_url("S3://b/x") and not is_url("runs/x") and not is_url("file:///x")
    assert local_path("file:///a/b") == Path("/a/b") and local_path("runs/x") == Path("runs/x")
