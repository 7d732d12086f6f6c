"""The working copy of a run folder at a URL: where it is on this machine, and how it is brought up to date.

A driver works in the copy as in any run folder; what it commits there goes to the URL (`csr_ray.store.mirror`).
Before a start does anything the two are compared, line by line of the journal:

    the copy has the URL's lines and more     a store was away when the run ended: these lines are sent now
    the URL has the copy's lines and more     another machine went on with the run: the rest is fetched
    they differ                               another machine went on, and this one, too: the URL's is the run, and
                                              the copy is put aside under another name
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from csr_ray.errors import DamageError
from csr_ray.store.atomic import make_folder, storage_errors, write_atomically
from csr_ray.store.cache import cache_folder
from csr_ray.store.digests import Digest, find_damage
from csr_ray.store.lines import DamagedLine, bodies
from csr_ray.store.object_lock import LOCK_FOLDER
from csr_ray.store.objects import Found, ObjectStore, endpoint
from csr_ray.store.pieces import PIECES_FOLDER, WHOLE, PieceGone, Stored, read_journal
from csr_ray.store.run_folder import RunFolder

_NUM_THREADS: Final = 16
_CHUNK_BYTES: Final = 1 << 20
_FILES_WITHOUT_A_LINE: Final = 8
# Whatever the journal does not name, but a start needs, or a person wants to see.
_LOOSE: Final = re.compile(
    r"config\.yaml|summary\.json|progress\.json|quarantine\.jsonl|judge\.jsonl|report\.html|eval/[^/]+\.jsonl|logs/.+"
    r"|trace/[^/]+|round_\d+/([^/]+/)?checkpoints/.+|(model|adapter|round_\d+/([^/]+/)?adapter)/README\.md"
)


def working_copy(url: str) -> RunFolder:
    """The copy's folder, below `CSR_RAY_CACHE` or the user's cache folder; it need not exist.

    Its name has the URL and the endpoint in it, for two stores may have buckets of one name.
    """
    url = url.rstrip("/")
    short = hashlib.blake2b(f"{url} {endpoint()}".encode(), digest_size=6).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", PurePosixPath(url).name)[:80]
    return RunFolder(cache_folder() / "runs" / f"{name}-{short}", url=url)


def is_loose(name: str) -> bool:
    """Whether a file of the run folder is kept at the URL without a line of the journal that names it."""
    return _LOOSE.fullmatch(name) is not None and not any(part.startswith(".") for part in name.split("/"))


@dataclass(frozen=True, kw_only=True)
class Copied:
    """How copy and URL stand to each other when a start begins.

    Attributes:
        stored: the journal at the URL.
        ahead: the copy's lines that the URL has not yet, with their newlines.
        lost: files that lines of the URL name, by name, which are gone there and sound here.
        found: every object of the run folder at the URL, by name.
    """

    stored: Stored
    ahead: tuple[bytes, ...] = ()
    lost: Mapping[str, Digest] = field(default_factory=dict)
    found: Mapping[str, Found]


def bring_up_to_date(folder: RunFolder, *, store: ObjectStore, is_new: bool, say: Callable[[str], None]) -> Copied:
    """Make the copy what the URL has, or leave it as a continuation of that. The run's lock has to be held.

    Args:
        is_new: the URL held nothing at all before the lock was taken, so what the copy may hold is of a run that has
            been removed there.

    Raises:
        DamageError: the journal at the URL is not what was written.
        StoreError: the store cannot be asked.
        StorageError: the copy cannot be written.
    """
    found = {name: one for name, one in store.list().items() if not name.startswith(f"{LOCK_FOLDER}/")}
    make_folder(folder.root)
    with tempfile.TemporaryFile() as file:
        stored = _read_sound(store, names=found, into=file)
        ahead = None if is_new and folder.journal.exists() else _lines_ahead(folder.journal, of=file)
        if ahead is None:
            why = "nothing is there any more" if is_new else "another machine has gone on with that run"
            _put_aside(folder, say=say, why=why)
        if not ahead and stored.num_lines:
            _write_journal(folder.journal, content=file)
        if not ahead and not stored.num_lines:
            _check_has_journal(store, found=found)
        file.seek(0)
        stored_files = _named_files(body for body, _ in bodies(file))
    sent_now = _named_files(ahead or ())
    named = {**stored_files, **sent_now}
    damaged = set(_damaged(folder.root, files=named))
    loose = [name for name in found if is_loose(name) and not (ahead and (folder.root / name).exists())]
    _fetch(store, root=folder.root, found=found, names=[*(damaged & found.keys()), *loose])
    lost = {
        name: digest
        for name, digest in stored_files.items()
        if name not in sent_now and name not in damaged
        if name not in found or found[name].num_bytes != digest.num_bytes
    }
    return Copied(stored=stored, ahead=ahead or (), lost=lost, found=found)


@contextlib.contextmanager
def fetched(store: ObjectStore, *, is_wanted: Callable[[str], bool]) -> Iterator[RunFolder]:
    """A copy of a run folder for whoever only reads it, which is gone at the end of the block. It needs no lock.

    Args:
        is_wanted: whether a file of this name is; the journal always is.

    Raises:
        StoreError: the store cannot be asked.
    """
    with tempfile.TemporaryDirectory(prefix="csr_ray_") as place:
        run = FetchedRun(store, place=Path(place))
        run.fetch(filter(is_wanted, run.names))
        yield run.folder


class FetchedRun:
    """A copy of a run folder for whoever only reads it: its journal, and what was asked for. It needs no lock.

    Attributes:
        folder: the copy.
        names: the run's files at the URL, relative to the folder.

    Raises:
        StoreError: the store cannot be asked.
    """

    def __init__(self, store: ObjectStore, *, place: Path) -> None:
        self.folder = RunFolder(place / PurePosixPath(store.url).name, url=store.url)
        self.folder.root.mkdir()
        self._store = store
        self._found = _fetch_journal(store, to=self.folder.journal)
        own = (LOCK_FOLDER, PIECES_FOLDER, WHOLE)
        self.names = [name for name in self._found if name.split("/")[0] not in own and ".." not in name.split("/")]

    def fetch(self, names: Iterable[str]) -> None:
        """Bring these files here; those that are not among `names` are left out."""
        known = set(self.names)
        _fetch(self._store, root=self.folder.root, found=self._found, names=[n for n in names if n in known])


class FollowedCopy:
    """A copy of a run folder at a URL for whoever watches it while it goes on. It needs no lock and sends nothing."""

    def __init__(self, store: ObjectStore, *, folder: RunFolder, is_wanted: Callable[[str], bool]) -> None:
        self.folder = folder
        self._store = store
        self._is_wanted = is_wanted
        self._have: dict[str, Found] = {}
        self._found: dict[str, Found] = {}

    def refresh(self) -> None:
        """Fetch what has changed, and remove what is gone.

        Raises:
            StoreError: the store cannot be asked; the copy stays as it was.
        """
        found = self._store.list()
        if _of_journal(found) != _of_journal(self._found):
            self._bring_journal()
        own = (LOCK_FOLDER, PIECES_FOLDER, WHOLE)
        wanted = {
            name: one
            for name, one in found.items()
            if name.split("/")[0] not in own and ".." not in name.split("/") and self._is_wanted(name)
        }
        changed = [name for name, one in wanted.items() if self._have.get(name) != one]
        _fetch(self._store, root=self.folder.root, found=found, names=changed)
        for name in self._have.keys() - wanted.keys():
            (self.folder.root / name).unlink(missing_ok=True)
        self._have, self._found = wanted, found

    def need(self, path: Path) -> None:
        """Fetch a file that is not wanted always, if it is not here.

        Raises:
            StoreError: the store cannot be asked.
        """
        name = path.relative_to(self.folder.root).as_posix()
        if not path.exists() and name in self._found:
            _fetch(self._store, root=self.folder.root, found=self._found, names=[name])

    def _bring_journal(self) -> None:
        """Bring the journal up to date; where it only has more lines they are appended, so that it stays one file."""
        with tempfile.TemporaryDirectory(dir=self.folder.root, prefix=".journal.") as place:
            fetched_to = Path(place, "journal")
            _fetch_journal(self._store, to=fetched_to)
            target = self.folder.journal
            if not fetched_to.exists():
                target.unlink(missing_ok=True)
                return
            num_bytes = target.stat().st_size if target.exists() else 0
            with fetched_to.open("rb") as new, target.open("ab+") as known:
                known.seek(0)
                is_more = num_bytes and all(
                    chunk == new.read(len(chunk)) for chunk in iter(lambda: known.read(_CHUNK_BYTES), b"")
                )
                if is_more:
                    shutil.copyfileobj(new, known)
                    return
            os.replace(fetched_to, target)


@contextlib.contextmanager
def followed(store: ObjectStore, *, is_wanted: Callable[[str], bool]) -> Iterator[FollowedCopy]:
    """A copy of a run folder that is brought up to date again and again, and is gone at the end of the block.

    Args:
        is_wanted: which files are brought always; the journal always is, others when they are asked for.
    """
    with tempfile.TemporaryDirectory(prefix="csr_ray_") as place:
        folder = RunFolder(Path(place, PurePosixPath(store.url).name), url=store.url)
        folder.root.mkdir()
        yield FollowedCopy(store, folder=folder, is_wanted=is_wanted)


def _of_journal(found: Mapping[str, Found]) -> dict[str, Found]:
    return {name: one for name, one in found.items() if name == WHOLE or name.startswith(f"{PIECES_FOLDER}/")}


def _fetch_journal(store: ObjectStore, *, to: Path) -> dict[str, Found]:
    """Fetch the journal of a run that may be going on; returns all objects that there are."""
    for is_last in (False, False, True):
        found = store.list()
        try:
            with to.open("wb") as file:
                stored = read_journal(store, names=found, into=file)
        except PieceGone:  # the driver has just joined it with others
            if is_last:
                raise
            continue
        break
    if not stored.num_bytes:
        to.unlink()
    return found


# ---- the journal ----


def _read_sound(store: ObjectStore, *, names: Iterable[str], into: BinaryIO) -> Stored:
    """The journal at the URL, of which every line is what was written."""
    stored = read_journal(store, names=names, into=into)
    into.seek(0)
    num_bytes = num_lines = 0
    try:
        for _, tail in bodies(into):
            num_bytes, num_lines = tail.num_bytes + tail.lacks_newline, tail.num_lines
    except DamagedLine as damage:
        raise DamageError(
            f"{store.url}/{PIECES_FOLDER if not stored.is_copy else WHOLE}, line {damage.number} of the journal: it "
            f"{damage.reason}; put the objects back from the bucket's versions or a copy, or --fresh to begin anew"
        ) from None
    into.seek(0, os.SEEK_END)
    if num_bytes > into.tell():
        into.write(b"\n")
    into.truncate(num_bytes)
    return replace(stored, num_lines=num_lines, num_bytes=num_bytes)


def _check_has_journal(store: ObjectStore, *, found: Iterable[str]) -> None:
    """Raises DamageError if there is work without a line that speaks of it: a start would write over all of it."""
    # A few may be what a run was sending before its first line, when it was killed.
    files = sorted(name for name in found if name.startswith("round_") and name.endswith(".parquet"))
    if len(files) > _FILES_WITHOUT_A_LINE:
        raise DamageError(
            f"{store.url}/{PIECES_FOLDER} is not there, but there are {len(files)} files that its lines spoke of, "
            f"such as {files[0]}: put its objects back from the bucket's versions or a copy, or --fresh to move this "
            "run aside and begin anew"
        )


def _lines_ahead(journal: Path, *, of: BinaryIO) -> tuple[bytes, ...] | None:
    """The lines that the copy's journal has behind those of the URL's; None if it is no continuation of it."""
    num_bytes = of.seek(0, os.SEEK_END)
    of.seek(0)
    if not journal.is_file():
        return ()
    ahead: list[bytes] = []
    last = b""

    def lines(file: BinaryIO) -> Iterator[bytes]:
        nonlocal last
        for line in file:
            last = line
            yield line

    try:
        with journal.open("rb") as file:
            for _ in bodies(lines(file)):
                line = last if last.endswith(b"\n") else last + b"\n"
                if of.tell() >= num_bytes:
                    ahead.append(line)
                elif of.read(len(line)) != line:
                    return None
    except DamagedLine:
        return None if num_bytes else ()  # where there is no other, the start says what is wrong with it
    return tuple(ahead)


def _write_journal(path: Path, *, content: BinaryIO) -> None:
    def write(temporary: Path) -> None:
        content.seek(0)
        with temporary.open("wb") as file:
            shutil.copyfileobj(content, file, _CHUNK_BYTES)

    write_atomically(path, write=write)


def _put_aside(folder: RunFolder, *, say: Callable[[str], None], why: str) -> None:
    target = folder.root.with_name(f"{folder.root.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    with storage_errors(folder.root):
        os.replace(folder.root, target)
        make_folder(folder.root)
    say(f"run.dir = {folder.url!r}: {why}; what this machine had of it is now {target}")


# ---- files ----


def _named_files(lines: Iterable[bytes]) -> dict[str, Digest]:
    """Every file that lines of a journal name, with the digest that the last of them says."""
    named: dict[str, Digest] = {}
    for line in lines:
        for name, plain in json.loads(line).get("files", {}).items():
            if not PurePosixPath(name).is_absolute() and ".." not in name.split("/"):
                named[name] = Digest.from_plain(plain)
    return named


def _damaged(root: Path, *, files: Mapping[str, Digest]) -> list[str]:
    wrong = find_damage((root / name, digest) for name, digest in files.items())
    return [path.relative_to(root).as_posix() for path, _ in wrong]


def _fetch(store: ObjectStore, *, root: Path, found: Mapping[str, Found], names: Iterable[str]) -> None:
    def fetch(name: str) -> None:
        store.download(name, path=root / name, modified_s=found[name].modified_s)

    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fetch") as pool:
        for _ in pool.map(fetch, names):
            pass
