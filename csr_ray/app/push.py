"""What `csr-ray push` does: a run's model, adapter or pairs into a repository of the Hugging Face hub, with its card.

What is sent is put together in a folder first: links to the run's own files, whose digests have been compared, and
beside them what is made for this (the card, the sum of several adapters, a data set). `huggingface_hub` sends it;
what has arrived is not sent again, so the command may be repeated. The run folder is only read. The token is the
hub's own affair (HF_TOKEN, or `hf auth login`), and stands in no message.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from csr_ray.app.kept_run import KeptRun, in_words, kept_run
from csr_ray.app.pairs import in_lines, is_file_of_examples, write_pairs
from csr_ray.errors import ConfigError, UserError
from csr_ray.redaction import has_credentials, without_credentials, without_secret
from csr_ray.report.cards import NO_LICENSE, THIS_FOLDER, Subject, hub_id_of, model_card, set_aside
from csr_ray.report.charts import size_in_words
from csr_ray.store.run_folder import CARD

What = Literal["model", "adapter", "pairs"]

_ADAPTER_CONFIG: Final = "adapter_config.json"
_LICENSE: Final = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}")
_LICENSE_LINE: Final = re.compile(r"(?m)^license:\s*\S")
# What a push takes away of an earlier one: more or other files of these names would be read along.
_REPLACED: Final = {
    "model": ["*.safetensors", "*.safetensors.index.json"],
    "adapter": ["adapter_model.*"],
    "pairs": ["data/*.parquet", "pairs/*.parquet", "answers/*.parquet"],
}
_NUM_TRIES: Final = 5
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 60.0
_BUSY: Final = (408, 409, 412, 429)


@dataclass(frozen=True, kw_only=True)
class Push:
    """What is asked for.

    Attributes:
        repo_id: owner/name, or a name alone, which is the token's owner's.
        round_number: of an adapter or pairs, from 1; None: the last, or all.
        endpoint: the hub's URL; None: what HF_ENDPOINT says, or the public one.
        license: one of the hub's identifiers, for the card; empty: what the card says.
        embeds: put every picture into the data set.
    """

    repo_id: str
    what: What = "model"
    round_number: int | None = None
    is_private: bool = False
    endpoint: str | None = None
    license: str = ""
    embeds: bool = False

    @property
    def repo_type(self) -> str:
        return "dataset" if self.what == "pairs" else "model"


def push(run_dir: str, *, asked: Push, is_dry_run: bool, console: Console) -> None:
    """Send what is asked for, or with `is_dry_run` only list it, for which neither network nor token is needed.

    Raises:
        ConfigError: something that is asked for is not there or cannot be; there is no token, or it may not do this.
        UserError: the hub cannot be reached, or does not take it.
    """
    _check(asked)
    token = None if is_dry_run else _token(asked)
    with (
        kept_run(run_dir, is_wanted=lambda name: _is_needed(name, what=asked.what)) as run,
        tempfile.TemporaryDirectory(prefix="csr_ray_") as place,
    ):
        folder = Path(place)
        lines = put_together(run, folder=folder, asked=asked)
        _list(folder, asked=asked, lines=lines, is_dry_run=is_dry_run, console=console)
        if token is not None:
            url = _send(folder, asked=asked, token=token, run_name=run.folder.title, console=console)
            console.print(f"pushed: {url}", markup=False, soft_wrap=True)


def _check(asked: Push) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(asked.repo_id)
    except HFValidationError as error:
        raise ConfigError(f"REPO_ID = {asked.repo_id!r}: {_one_line(error)}") from None
    if asked.round_number is not None and asked.what == "model":
        raise ConfigError(
            "--round: the model is that of the last round; name --what adapter for another one, or leave it out"
        )
    if asked.embeds and asked.what != "pairs":
        raise ConfigError("--embed-images: is for --what pairs; leave it out")
    if asked.license and not _LICENSE.fullmatch(asked.license):
        raise ConfigError(
            f"--license = {asked.license!r}: one of the hub's identifiers is expected, such as apache-2.0 or other"
        )
    if asked.endpoint is not None:
        if not re.match(r"https?://[^/\s]", asked.endpoint):
            shown = without_credentials(asked.endpoint)
            raise ConfigError(f"--endpoint = {shown!r}: give a URL that begins with https:// or http://")
        if has_credentials(asked.endpoint):
            raise ConfigError(
                f"--endpoint = {without_credentials(asked.endpoint)!r}: a password in a URL would stand in messages; "
                "the token is taken from HF_TOKEN"
            )


def _token(asked: Push) -> str:
    """The user's token, which is asked for before anything is put together.

    Raises:
        ConfigError: there is none, or the hub is not to be asked at all.
    """
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise ConfigError("HF_HUB_OFFLINE = 1: nothing can be pushed; unset it, or see what would be with --dry-run")
    token = get_token()
    if not token:
        raise ConfigError(
            "HF_TOKEN: not set, and nobody is logged in; set it to a token with write access (the hub's page "
            "Settings, Access Tokens), or log in with `hf auth login`; --dry-run lists what would be sent without one"
        )
    return token


def _is_needed(name: str, *, what: What) -> bool:
    parts = name.split("/")
    if what == "pairs":
        return is_file_of_examples(name)
    if what == "adapter":  # of the model only what says how it is to be asked
        return "adapter" in parts[:-1] or (parts[0] == "model" and not name.endswith(".safetensors"))
    return parts[0] == "model"


# ---- what is sent ----


def put_together(run: KeptRun, *, folder: Path, asked: Push) -> list[str]:
    """Fill an empty folder with what is to be sent; returns what is to be said of it.

    Raises:
        ConfigError, NoDataError: it is not there.
        DamageError: it is not what the run wrote.
    """
    if asked.what == "pairs":
        rounds = () if asked.round_number is None else (asked.round_number,)
        written = write_pairs(run, folder=folder, rounds=rounds, embeds=asked.embeds)
        if not asked.embeds and any(one.num_pictures < one.num_rows for one in written.values()):
            raise ConfigError(
                "--what pairs: the pictures are files of this machine, or of a store, which others cannot open; "
                "--embed-images puts them into the data set (see to it that you may publish them)"
            )
        lines = in_lines(written, rounds=rounds)
    elif asked.what == "adapter":
        lines = _put_adapter(run, folder=folder, round_number=asked.round_number)
    else:
        lines = _put_model(run, folder=folder)
    card = folder / CARD
    text = _with_license(card.read_text(encoding="utf-8"), license=asked.license)
    card.write_text(text.replace(THIS_FOLDER, asked.repo_id), encoding="utf-8")
    if not _LICENSE_LINE.search(text.partition("\n---")[0]):
        lines.append("its card names no license: --license ID says one, or write it into the card on the hub")
    return lines


def _put_model(run: KeptRun, *, folder: Path) -> list[str]:
    finished = run.journal.all("finished")
    if not finished:
        known = _trained(run)
        other = f", or push what there is: --what adapter --round {max(known)}" if known else ""
        raise ConfigError(
            f"RUN_DIR = {run.name!r}: the run is not finished, so it has no model of its last policy yet; start its "
            f"command again (csr-ray run CONFIG), which goes on where it was{other}"
        )
    named = finished[-1]["files"]
    # A line that names a card is of a run from before cards: it is the base model's own.
    has_card = f"{run.folder.model.name}/{CARD}" not in named
    files = {name: plain for name, plain in named.items() if name.split("/")[0] == run.folder.model.name}
    run.check(files)
    for name in files:
        if name != f"{run.folder.model.name}/{CARD}":
            _link(folder / name.partition("/")[2], to=run.folder.root / name)
    version = finished[-1]["version"]
    of = Subject(kind="model", version=version, adapters=_adapters_up_to(run, version=version))
    _put_card(run, folder=folder, of=of, written=run.folder.model / CARD if has_card else None)
    return [f"the model of policy version {version}"]


def _put_adapter(run: KeptRun, *, folder: Path, round_number: int | None) -> list[str]:
    """One LoRA on the base model: the first phase's own, or the sum of all phases' up to a round's end."""
    known = _trained(run)
    if not known:
        raise ConfigError(f"RUN_DIR = {run.name!r}: no adapter is trained yet; it is there when the first round is")
    number = max(known) if round_number is None else round_number
    if number not in known:
        raise ConfigError(f"--round = {number}: RUN_DIR = {run.name!r} has adapters of round {in_words(known)}")
    version = known[number]
    lines = run.journal.all("train")[:version]
    for line in lines:
        run.check(line["files"])
    names = _adapters_up_to(run, version=version)
    folders = [run.folder.root / name for name in names]
    rank = run.config.train.lora_rank * version
    written = None
    if len(folders) == 1:
        for path in sorted(folders[0].iterdir()):
            if path.name not in (CARD, _ADAPTER_CONFIG):
                _link(folder / path.name, to=path)
        settings = json.loads((folders[0] / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        written = folders[0] / CARD
        of = Subject(kind="adapter", version=version, adapters=names, rank=rank)
        said = "the LoRA of the first phase"
    else:
        from csr_ray.policy.lora import combined_tensors, save_combined

        save_combined(combined_tensors(folders), output=folder / "sum")
        for path in (folder / "sum").iterdir():
            path.rename(folder / path.name)
        (folder / "sum").rmdir()
        settings = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        of = Subject(kind="adapters", version=version, adapters=names, rank=rank)
        said = f"one LoRA of rank {rank}: the sum of {version} adapters, up to round {number}"
    # Training has written where its node had the base, which is no place of anybody else's.
    settings["base_model_name_or_path"] = hub_id_of(run.config)
    settings["revision"] = (run.summary.get("policy") or {}).get("revision") if hub_id_of(run.config) else None
    (folder / _ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _put_card(run, folder=folder, of=of, written=written)
    return [said]


def _trained(run: KeptRun) -> dict[int, int]:
    """By the number of a round (from 1) whose phases are all trained: the policy version that it ends with."""
    closed = {entry["round"] for entry in run.journal.all("round")}
    found: dict[int, int] = {}
    for version, entry in enumerate(run.journal.all("train"), start=1):
        if entry["round"] in closed:
            found[entry["round"] + 1] = version
    return found


def _adapters_up_to(run: KeptRun, *, version: int) -> tuple[str, ...]:
    """The folders of the adapters that make a policy version, by name within the run folder, oldest first."""
    lines = run.journal.all("train")[:version]
    return tuple(next(iter(line["files"])).rsplit("/", 1)[0] for line in lines)


def _put_card(run: KeptRun, *, folder: Path, of: Subject, written: Path | None) -> None:
    """The card that the run has written, which a person may have changed; without one a new one is made."""
    from csr_ray.policy.start_token import leaves_start_to_tokenizer

    if written is not None and written.is_file():
        text = written.read_text(encoding="utf-8")
    else:
        of = replace(of, leaves_start_to_tokenizer=leaves_start_to_tokenizer(run.folder.model))
        aside = set_aside(run.folder.quarantine)
        text = model_card(run.summary, config=run.config, run_name=run.folder.title, of=of, aside=aside)
    (folder / CARD).write_text(text, encoding="utf-8")


def _link(path: Path, *, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to.resolve())


def _with_license(text: str, *, license: str) -> str:
    """The card with this license in its metadata, in the place of the line that says where it goes, or of another."""
    if not license:
        return text
    line = f"license: {license}"
    head, end, body = text.partition("\n---")
    if NO_LICENSE in head:
        head = head.replace(NO_LICENSE, line, 1)
    elif _LICENSE_LINE.search(head):
        head = re.sub(r"(?m)^license:.*$", line, head, count=1)
    elif head.startswith("---\n"):
        head = f"---\n{line}\n{head[4:]}"
    else:
        return f"---\n{line}\n---\n\n{text}"
    return head + end + body


# ---- telling ----


def _list(folder: Path, *, asked: Push, lines: list[str], is_dry_run: bool, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files_of(folder)}
    for name, num_bytes in sizes.items():
        table.add_row(name, size_in_words(num_bytes))
    kind = "data set" if asked.repo_type == "dataset" else asked.repo_type
    visible = "private" if asked.is_private else "public, unless it is there already and private"
    console.print(
        f"{'would push' if is_dry_run else 'push'} {len(sizes)} files, {size_in_words(sum(sizes.values()))}, to the "
        f"{kind} {asked.repo_id} ({visible})",
        markup=False,
        soft_wrap=True,
    )
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    console.print(table)


def _files_of(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


# ---- sending ----


def _send(folder: Path, *, asked: Push, token: str, run_name: str, console: Console) -> str:
    """Create the repository if it is not there, and send the folder; returns its address."""
    import sys

    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(endpoint=asked.endpoint, token=token, library_name="csr_ray")
    endpoint = api.endpoint

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    with _told(asked, endpoint=endpoint, token=token):
        repo = _insist(
            lambda: api.create_repo(
                asked.repo_id, repo_type=asked.repo_type, private=asked.is_private or None, exist_ok=True
            ),
            say=say,
            token=token,
        )
        if asked.is_private:
            found = _insist(lambda: api.repo_info(repo.repo_id, repo_type=asked.repo_type), say=say, token=token)
            if found.private is False:
                raise ConfigError(
                    f"--private: {repo.repo_id} is there already, and everybody can see it; make it private on the "
                    "hub, name another REPO_ID, or leave the flag out"
                )
        _insist(
            lambda: api.upload_folder(
                folder_path=folder,
                repo_id=repo.repo_id,
                repo_type=asked.repo_type,
                commit_message=f"{asked.what} of the csr_ray run {run_name}",
                delete_patterns=_REPLACED[asked.what],
            ),
            say=say,
            token=token,
        )
    kind = "datasets/" if asked.repo_type == "dataset" else ""
    return f"{without_credentials(endpoint)}/{kind}{repo.repo_id}"


def _insist(do: Callable[[], Any], *, say: Callable[[str], None], token: str) -> Any:
    """Do it, and again where the hub or the way to it fails for the moment; what it has got by then it keeps."""
    pause_s = _FIRST_PAUSE_S
    for left in reversed(range(_NUM_TRIES)):
        try:
            return do()
        except Exception as error:
            if not left or not _may_pass(error):
                raise
            say(f"  {_said(error, token=token)}; tried again in {pause_s:g} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    raise AssertionError


def _may_pass(error: BaseException) -> bool:
    """Whether it may go better in a moment: the network's errors, and the hub's own (5xx, too many requests)."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            status = getattr(cause.response, "status_code", None)
            return status is None or status >= 500 or status in _BUSY
        if type(cause).__module__.split(".")[0].startswith("httpx") or isinstance(cause, ConnectionError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextlib.contextmanager
def _told(asked: Push, *, endpoint: str, token: str) -> Iterator[None]:
    """Whatever the hub says in the block becomes one line that says what to do, without the token."""
    from huggingface_hub.errors import HfHubHTTPError

    where = without_credentials(endpoint)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = _said(error, token=token)
        status = _status_of(error)
        if status == 401:
            raise ConfigError(
                f"HF_TOKEN: {where} does not accept it ({said}); set it to a token that is valid there"
            ) from None
        if status == 403:
            raise ConfigError(
                f"REPO_ID = {asked.repo_id!r}: the token may not write there ({said}); give it write access, or name "
                "a repository of yours"
            ) from None
        if status is not None and 400 <= status < 500 and status not in _BUSY:
            raise ConfigError(f"REPO_ID = {asked.repo_id!r}: {where} refuses it: {said}") from None
        if isinstance(error, (HfHubHTTPError, OSError)) or _may_pass(error):
            raise UserError(
                f"{where} has not taken everything: {said}; start the same command again, which sends what is missing"
            ) from None
        raise UserError(f"{asked.repo_id} was not pushed to {where}: {said}") from None


def _status_of(error: BaseException) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            status: int | None = getattr(cause.response, "status_code", None)
            return status
        cause = cause.__cause__ or cause.__context__
    return None


def _said(error: BaseException, *, token: str) -> str:
    return without_secret(without_credentials(_one_line(error)), token)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400].rstrip(".;: ") or type(error).__name__
