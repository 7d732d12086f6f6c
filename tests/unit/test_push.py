"""`csr-ray push` against a stand-in of the hub's HTTP interface: what arrives is byte for byte what the run has."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from described_runs import PublishedDriver
from hub_server import OWNER, TOKEN, Hub, Repo, serve_hub
from huggingface_hub import ModelCard
from s3_server import s3_door
from safetensors.torch import load_file

from csr_ray.__main__ import main
from csr_ray.app import push as pushing
from csr_ray.report.cards import NO_LICENSE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    driver = PublishedDriver(tmp_path_factory.mktemp("published") / "mine")
    driver.run()
    return driver.folder.root


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round of two is done."""
    driver = PublishedDriver(tmp_path_factory.mktemp("unfinished") / "run")
    with pytest.raises(KeyboardInterrupt):
        driver.run(fail_at=1)
    return driver.folder.root


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(pushing, "_FIRST_PAUSE_S", 0.01)
    with serve_hub() as one:
        yield one


def push(run: Path | str, hub: Hub, *flags: str, repo: str = f"{OWNER}/mine") -> int:
    return main(["push", str(run), repo, "--endpoint", hub.url, *flags])


def test_the_model_arrives_byte_for_byte_with_its_card(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(finished, hub) == 0
    (repo,) = hub.repos.values()
    assert list(hub.repos) == [f"models/{OWNER}/mine"] and not repo.is_private
    expected = {path.relative_to(finished / "model").as_posix(): path for path in (finished / "model").rglob("*")}
    expected = {name: path for name, path in expected.items() if path.is_file()}
    assert set(repo.files) == set(expected) and "more/notes.txt" in expected
    for name, path in expected.items():
        if name != "README.md":
            assert repo.files[name] == path.read_bytes(), name
    card = repo.files["README.md"].decode()
    assert card == (finished / "model" / "README.md").read_text().replace("path/to/this/folder", f"{OWNER}/mine")
    assert f"vllm serve {OWNER}/mine" in card and "path/to/this/folder" not in card
    assert hub.num_asked("PUT /lfs/") == 3, "a file of 2.5 MB in parts of one"
    said = capsys.readouterr().out
    assert f"pushed: {hub.url}/{OWNER}/mine" in said and "names no license" in said


def test_a_second_push_sends_nothing_again(finished: Path, hub: Hub) -> None:
    assert push(finished, hub) == 0
    sent = hub.num_asked("PUT /lfs/")
    assert push(finished, hub) == 0
    assert hub.num_asked("PUT /lfs/") == sent
    (repo,) = hub.repos.values()
    assert repo.commits == ["model of the csr_ray run mine"], "nothing was new, so there is no second commit"


def test_a_dry_run_lists_files_and_sizes_and_asks_nobody(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push(finished, hub, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"would push 4 files, 2.4 MiB, to the model {OWNER}/mine (public" in said
    assert "model.safetensors" in said and "2.4 MiB" in said and "more/notes.txt" in said
    assert hub.asked == []


def test_several_rounds_arrive_as_one_lora_that_is_their_sum(finished: Path, hub: Hub) -> None:
    assert push(finished, hub, "--what", "adapter") == 0
    (repo,) = hub.repos.values()
    assert set(repo.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    (finished.parent / "sent.safetensors").write_bytes(repo.files["adapter_model.safetensors"])
    sent = load_file(finished.parent / "sent.safetensors")
    down, up = sent["base_model.model.layer.lora_A.weight"], sent["base_model.model.layer.lora_B.weight"]
    one = 2.0 * torch.ones(4, 2) @ torch.ones(2, 3)  # alpha / r times B A of the first
    assert torch.equal(up @ down, one + 4 * one)
    settings = json.loads(repo.files["adapter_config.json"])
    assert (settings["r"], settings["lora_alpha"]) == (4, 4) and settings["base_model_name_or_path"] is None
    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.library_name == "peft" and "2 rounds as one LoRA" in card.text


def test_the_first_rounds_lora_arrives_as_it_is_but_for_the_place_of_the_base(finished: Path, hub: Hub) -> None:
    assert push(finished, hub, "--what", "adapter", "--round", "1") == 0
    (repo,) = hub.repos.values()
    folder = finished / "round_000" / "adapter"
    assert repo.files["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    ours, theirs = (
        json.loads((folder / "adapter_config.json").read_text()),
        json.loads(repo.files["adapter_config.json"]),
    )
    assert ours.pop("base_model_name_or_path") == "/home/jane/models/base"
    assert (theirs.pop("base_model_name_or_path"), theirs.pop("revision")) == (None, None) and ours == theirs
    assert b"jane" not in b"".join(repo.files.values())


def test_pairs_arrive_with_their_pictures_and_replace_the_ones_before(
    finished: Path, hub: Hub, tmp_path: Path
) -> None:
    key = f"datasets/{OWNER}/mine"
    stale = {"data/train-00000-of-00007.parquet": b"old", "LICENSE": b"mine"}
    hub.repos[key] = Repo(is_private=False, files=dict(stale))
    assert push(finished, hub, "--what", "pairs", "--embed-images") == 0
    files = hub.repos[key].files
    assert set(files) == {"README.md", "LICENSE", "data/train-00000-of-00001.parquet"}
    path = tmp_path / "sent.parquet"
    path.write_bytes(files["data/train-00000-of-00001.parquet"])
    assert pq.read_table(path).num_rows == 6
    assert f'load_dataset("{OWNER}/mine", split="train")' in files["README.md"].decode()


def test_pairs_whose_pictures_nobody_could_open_are_not_pushed(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(finished, hub, "--what", "pairs") == 2
    assert "--embed-images puts them into the data set" in capsys.readouterr().err
    assert hub.asked == []


def test_a_run_at_a_url_is_pushed_as_well(
    finished: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csr_ray.store.objects import open_store

    with s3_door() as door:
        assert door is not None
        url = f"s3://bucket/{tmp_path.name}/mine"
        store = open_store(url, key="run.dir")
        for path in finished.rglob("*"):
            if path.is_file():
                store.upload(path, name=path.relative_to(finished).as_posix())
        monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
        for what in ("model", "adapter"):
            assert push(url, hub, "--what", what, repo=f"{OWNER}/{what}") == 0
    sent = hub.repos[f"models/{OWNER}/model"].files
    assert sent["model.safetensors"] == (finished / "model" / "model.safetensors").read_bytes()
    assert "adapter_model.safetensors" in hub.repos[f"models/{OWNER}/adapter"].files


# ---- what is not there, or may not be ----


def test_a_run_that_is_not_finished_has_no_model_and_says_what_there_is(
    unfinished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(unfinished, hub) == 2
    said = capsys.readouterr().err
    assert "the run is not finished" in said and "csr-ray run CONFIG" in said
    assert "--what adapter --round 1" in said and hub.asked == []
    assert push(unfinished, hub, "--what", "adapter") == 0
    assert push(unfinished, hub, "--what", "adapter", "--round", "2") == 2
    assert "has adapters of round 1" in capsys.readouterr().err


def test_without_a_token_the_error_says_where_it_is_taken_from(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push(finished, hub) == 2
    said = capsys.readouterr().err
    assert said.startswith("csr-ray: HF_TOKEN: not set") and "hf auth login" in said and hub.asked == []


def test_a_damaged_model_is_not_pushed(finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished / "model" / "config.json"
    data = path.read_bytes()
    path.write_bytes(data + b" ")
    try:
        assert push(finished, hub) == 1
    finally:
        path.write_bytes(data)
    said = capsys.readouterr().err
    assert "model/config.json has" in said and "csr-ray check" in said and hub.asked == []


@pytest.mark.parametrize(
    ("flags", "repo", "says"),
    [
        (["--round", "1"], f"{OWNER}/mine", "--round: the model is that of the last round"),
        (["--embed-images"], f"{OWNER}/mine", "--embed-images: is for --what pairs"),
        (["--license", "My own!"], f"{OWNER}/mine", "--license = 'My own!'"),
        ([], "a/b/c", "REPO_ID = 'a/b/c'"),
        ([], "..", "REPO_ID = '..'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(
    finished: Path, hub: Hub, flags: list[str], repo: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(finished, hub, *flags, repo=repo) == 2
    assert says in capsys.readouterr().err and hub.asked == []


def test_an_endpoint_that_is_none_or_has_a_password_is_refused(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, says in (("hub.example.org", "begins with https://"), ("https://me:pw@hub", "'https://***@hub'")):
        assert main(["push", str(finished), "a/b", "--endpoint", url]) == 2
        said = capsys.readouterr().err
        assert says in said and "pw" not in said.replace("password", "")


def test_a_repository_that_everybody_sees_takes_nothing_private(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(finished, hub, "--private", repo=f"{OWNER}/new") == 0
    assert hub.repos[f"models/{OWNER}/new"].is_private
    hub.repos[f"models/{OWNER}/mine"] = Repo(is_private=False)
    assert push(finished, hub, "--private") == 2
    assert "is there already, and everybody can see it" in capsys.readouterr().err
    assert hub.repos[f"models/{OWNER}/mine"].files == {}


def test_what_the_hub_refuses_is_one_line_with_the_remedy_and_without_the_token(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.refused_owners.add("others")
    assert push(finished, hub, repo="others/mine") == 2
    said = capsys.readouterr()
    assert "the token may not write there" in said.err and "write access" in said.err
    secret = "hf_wRoNgWrOnGwRoNgWrOnGwRoNg"
    monkeypatch.setenv("HF_TOKEN", secret)
    assert push(finished, hub) == 2
    more = capsys.readouterr()
    assert "HF_TOKEN: " in more.err and "does not accept it" in more.err
    everything = said.out + said.err + more.out + more.err + caplog.text
    assert TOKEN not in everything and secret not in everything and secret[:10] not in everything
    assert f"Bearer {secret}" in hub.authorizations, "the hub did see it"


# ---- trouble on the way ----


@pytest.mark.parametrize(
    ("where", "statuses"),
    [
        ("POST /api/repos/create", [503, 500]),
        ("POST /api/validate-yaml", [502]),
        ("/preupload/main", [504]),
        ("objects/batch", [500]),
        ("PUT /lfs/", [0, 500]),
        ("/verify", [503]),
        ("/commit/main", [500, 429]),
        ("/commit/main", [0]),
    ],
)
def test_what_fails_for_a_moment_is_tried_again_until_all_has_arrived(
    finished: Path, hub: Hub, where: str, statuses: list[int]
) -> None:
    hub.troubles[where] = list(statuses)
    assert push(finished, hub) == 0
    assert hub.troubles[where] == []
    (repo,) = hub.repos.values()
    assert repo.files["model.safetensors"] == (finished / "model" / "model.safetensors").read_bytes()
    assert hub.num_asked("PUT /lfs/") <= 3 + len(statuses), "what had arrived was not sent again"


def test_a_hub_that_stays_away_ends_the_push_and_the_next_one_sends_the_rest(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.troubles["/commit/main"] = [500] * 1000
    assert push(finished, hub) == 1
    said = capsys.readouterr()
    assert "has not taken everything" in said.err and "start the same command again" in said.err
    assert said.out.count("tried again in") == 4
    sent = hub.num_asked("PUT /lfs/")
    hub.troubles.clear()
    assert push(finished, hub) == 0
    assert hub.num_asked("PUT /lfs/") == sent


def test_nobody_at_the_endpoint_is_said(finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(finished), "a/b", "--endpoint", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9 has not taken everything" in capsys.readouterr().err


# ---- the card ----


@pytest.mark.parametrize("before", [NO_LICENSE, "license: mit"])
def test_a_license_that_is_said_stands_in_the_cards_metadata(
    finished: Path, hub: Hub, before: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "model" / "README.md"
    text = path.read_text()
    path.write_text(text.replace(NO_LICENSE, before))
    try:
        assert push(finished, hub, "--license", "apache-2.0") == 0
    finally:
        path.write_text(text)
    (repo,) = hub.repos.values()
    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.license == "apache-2.0" and "license: mit" not in card.content
    assert "names no license" not in capsys.readouterr().out


def test_a_card_of_the_users_own_is_pushed_as_it_is(finished: Path, hub: Hub) -> None:
    path = finished / "model" / "README.md"
    text = path.read_text()
    path.write_text("# My model\n\nTrained on my photos.\n")
    try:
        assert push(finished, hub, "--license", "mit") == 0
    finally:
        path.write_text(text)
    (repo,) = hub.repos.values()
    assert repo.files["README.md"] == b"---\nlicense: mit\n---\n\n# My model\n\nTrained on my photos.\n"


def test_a_card_that_the_hub_cannot_read_is_said_before_anything_is_sent(
    finished: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "model" / "README.md"
    text = path.read_text()
    path.write_text("---\nlicense: [mit\n---\n\n# My model\n")
    try:
        assert push(finished, hub) == 2
    finally:
        path.write_text(text)
    assert "Invalid metadata in README.md" in capsys.readouterr().err
    assert hub.num_asked("PUT /lfs/") == 0


def test_a_run_from_before_cards_gets_one_and_the_bases_is_not_taken_for_it(finished: Path, hub: Hub) -> None:
    cards = [path for path in finished.rglob("README.md")]
    texts = [path.read_text() for path in cards]
    for path in cards:
        path.unlink()
    try:
        assert push(finished, hub) == 0
    finally:
        for path, text in zip(cards, texts, strict=True):
            path.write_text(text)
    (repo,) = hub.repos.values()
    assert "mine: the model after 2 rounds" in repo.files["README.md"].decode()


# ---- as a program ----


def test_the_command_respects_the_hubs_own_variables_and_shows_no_token(
    finished: Path, hub: Hub, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_DEBUG": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "csr_ray", "push", str(finished), "mine", "--private"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"pushed: {hub.url}/{OWNER}/mine" in done.stdout, "a name alone is the token's owner's"
    assert TOKEN not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(TOKEN.encode() not in path.read_bytes() for path in written)
    assert hub.repos[f"models/{OWNER}/mine"].is_private
