"""What a name in the user's data may lead to: regular files and known stores, within limits of bytes and time."""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from csr_ray.data import files
from csr_ray.data.files import UnreadableError, check_scheme, open_file, open_local
from csr_ray.data.images import load_image
from csr_ray.data.prompts import PromptFile, read_prompts
from csr_ray.errors import ConfigError


def refusal(name: str) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        open_file(name)
    return caught.value


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of things that are no regular files."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, target in {"to_pipe": "pipe", "to_zero": "/dev/zero", "to_folder": "folder", "loop": "loop"}.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pipe", "a pipe (FIFO), not a file"),
        ("to_pipe", "a pipe (FIFO), not a file"),
        ("to_zero", "a device, not a file"),
        ("/dev/zero", "a device, not a file"),
        ("/dev/tty", "not"),  # a device, or none where there is no terminal
        ("folder", "a folder, not a file"),
        ("to_folder", "a folder, not a file"),
        ("loop", "no such file"),
        ("none", "no such file"),
        ("/proc/self/maps", "empty file"),
    ],
)
def test_what_is_no_regular_file_is_called_by_its_name_at_once(odd: Path, scheme: str, name: str, says: str) -> None:
    started_s = time.monotonic()
    error = refusal(scheme + str(odd / name))
    assert says in str(error)
    assert time.monotonic() - started_s < 1


def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert "a socket" in str(refusal(str(tmp_path / "s")))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_prompt_file_that_is_no_file_is_refused_at_once(odd: Path, scheme: str) -> None:
    for name, says in (("pipe", "a pipe"), ("to_zero", "a device"), ("folder", "a folder")):
        with pytest.raises(ConfigError, match=rf"data\.prompts = .*{says}"):
            PromptFile(scheme + str(odd / name), images=None, limit=None)


def test_a_file_url_is_read_and_a_relative_one_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert load_image(f"file://{tmp_path}/a.png").size == (8, 8)
    for name in ("file://a.png", "file://~/a.png", "file://localhost/a.png"):
        assert "absolute path" in str(refusal(name))


def test_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room
    assert "larger than 256 MiB" in str(refusal(str(tmp_path / "huge.png")))
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    for num_bytes, is_fine in ((10, True), (11, False)):
        (tmp_path / "x").write_bytes(bytes(num_bytes))
        fsspec.filesystem("memory").pipe("/limit/x", bytes(num_bytes))
        for name in (str(tmp_path / "x"), "memory://limit/x"):
            if is_fine:
                with open_file(name) as opened:
                    assert len(opened.read()) == num_bytes
            else:
                assert "larger than" in str(refusal(name))


@pytest.mark.parametrize(
    "name",
    [
        "simplecache::s3://bucket/a.png",
        "filecache::https://example.com/a.png",
        "blockcache::file:///etc/passwd",
        "zip://a.png::s3://bucket/a.zip",
        "tar://a.png::file:///x.tar",
        "s3://bucket/a.png::x",
        "file:///a.png::zip://x",
        "reference://a.png",
        "github://owner:name@main/a.png",
        "git://x/a.png",
        "ssh://host/a.png",
        "sftp://host/a.png",
        "ftp://host/a.png",
        "smb://host/a.png",
        "webhdfs://host/a.png",
        "dask://x",
        "jupyter://x",
        "python://os.system",
        "data://image/png",
        "generic://x",
        "dir://x",
        "local:///etc/passwd",
        "://x",
        " http://x/a.png",
    ],
)
def test_schemes_that_nobody_needs_are_refused_before_anything_is_opened(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec, "open", lambda *_, **__: pytest.fail("asked fsspec"))
    error = refusal(name)
    assert error.fault == "input"
    assert any(words in str(error) for words in ("scheme", "chain", "no such file"))


@pytest.mark.parametrize("scheme", [*files.STORES, "file"])
def test_the_usual_stores_are_understood(scheme: str) -> None:
    check_scheme(f"{scheme}://bucket/a.png", urls=False)


def test_web_pages_are_off_unless_the_config_allows_them(tmp_path: Path) -> None:
    rows = '{"id": 1, "image": "http://x.org/a.png", "prompt": "?"}\n'
    (tmp_path / "p.jsonl").write_text(rows)
    prompts = PromptFile(str(tmp_path / "p.jsonl"), images=None, limit=None)
    assert prompts.num == 0
    assert "data.urls = false" in next(prompts.rejections()).reason
    assert PromptFile(str(tmp_path / "p.jsonl"), images=None, limit=None, urls=True).num == 1
    for key in ({"source": "https://x.org/p.jsonl"}, {"source": "p.jsonl", "images": "http://x.org"}):
        with pytest.raises(ConfigError, match=r"data\.urls = false"):
            read_prompts(**{"images": None, "limit": None, **key})


class Silent(MemoryFileSystem):
    """A store that does not answer."""

    protocol = "s3"

    def _open(self, *_: Any, **__: Any) -> Any:
        time.sleep(60)


class Broken(MemoryFileSystem):
    """A store that has an error of its own, with a secret in it."""

    protocol = "gs"

    def _open(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("503 SlowDown https://bucket/a.png?X-Amz-Signature=hush")


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's `registry` is the module's mapping, which nobody may write to.
    known = importlib.import_module("fsspec.registry")._registry
    for store in (Silent, Broken):
        monkeypatch.setitem(known, str(store.protocol), store)


def test_a_silent_store_is_given_up_and_is_the_machines_fault(stores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "STORE_S", 0.2)
    started_s = time.monotonic()
    error = refusal("s3://bucket/a.png")
    assert ("nothing whole after 0.2 s" in str(error), error.fault) == (True, "machine")
    assert time.monotonic() - started_s < 5
    error = refusal("gs://bucket/a.png")
    assert ("503 SlowDown" in str(error), error.fault) == (True, "machine")
    assert "hush" not in str(error)


def test_what_the_disk_says_is_the_machines_fault_and_what_the_path_says_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(str(tmp_path / "none")).fault == "input"
    assert refusal(str(tmp_path / ("x" * 300))).fault == "input"

    def failing(*_: Any, **__: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", failing)
    error = refusal(str(tmp_path / "none"))
    assert (str(error), error.fault) == ("cannot be read: Input/output error", "machine")


def test_an_error_keeps_its_fault_on_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableError("gone", fault="machine")))
    assert (str(error), error.fault) == ("gone", "machine")


def test_a_local_file_is_opened_before_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that takes a file's place between a look and an opening would be waited for."""
    (tmp_path / "x").write_bytes(b"file")
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("looked at it first"))
    with open_local(str(tmp_path / "x")) as file:
        assert file.read() == b"file"
