"""Models, benchmarks, prompts and pictures in a bucket: fetched once, whole or not at all, or one line says why."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from s3_server import Door, Trouble, s3_door

from csr_ray.app.inputs import check_policy
from csr_ray.config.schema import Eval
from csr_ray.data.images import check_image
from csr_ray.data.prompts import PromptFile, read_prompts
from csr_ray.errors import ConfigError
from csr_ray.evaluation.suite import load_suite
from csr_ray.policy import stored
from csr_ray.policy.clip_source import check_clip_source, clip_source
from csr_ray.policy.source import is_here, local_folder, reference_of, revision_of
from csr_ray.policy.stored import is_stored_here
from csr_ray.store.cache import cache_folder
from csr_ray.store.objects import ObjectStore

MODEL = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 40_000,
    "tokenizer.json": b"{}",
    "preprocessor_config.json": b"{}",
}
OTHERS = {"README.md": b"words", "pytorch_model.bin": b"a pickle", "training/checkpoint.pt": b"a pickle"}


@pytest.fixture(scope="module")
def one_door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


@pytest.fixture
def door(one_door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    yield one_door
    one_door.trouble = Trouble()


@pytest.fixture
def bucket(door: Door, tmp_path: Path) -> ObjectStore:
    store = door.store(f"{tmp_path.name}/model")
    for name, data in {**MODEL, **OTHERS}.items():
        store.write(name, data)
    return store


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def num_read(door: Door) -> int:
    return door.trouble.seen["GET object"]


# ---- the policy ----


def test_a_model_at_a_url_is_fetched_once_and_only_what_belongs_to_it(door: Door, bucket: ObjectStore) -> None:
    check_policy(bucket.url)
    reference = reference_of(bucket.url)
    assert not is_here(reference) and reference == f"{bucket.url}@{revision_of(reference)}"
    folder = local_folder(reference)
    assert files_of(folder) == MODEL and folder.is_relative_to(cache_folder() / "models")
    assert is_here(reference)
    door.trouble = Trouble(away=True)
    assert local_folder(reference) == folder, "nobody is asked for what is here"
    assert reference_of(bucket.url, revision=revision_of(reference)) == reference


def test_of_many_processes_of_a_node_one_fetches(door: Door, bucket: ObjectStore) -> None:
    reference = reference_of(bucket.url)
    door.trouble = Trouble(delayed=1.0, delay_s=0.1)
    together = threading.Barrier(6)

    def fetch(_: int) -> Path:
        together.wait()
        return local_folder(reference)

    with ThreadPoolExecutor(6) as pool:
        folders = set(pool.map(fetch, range(6)))
    assert len(folders) == 1 and files_of(folders.pop()) == MODEL
    assert num_read(door) <= len(MODEL) + 2, "each file once"


def test_a_model_that_has_changed_at_its_url_is_another_one(bucket: ObjectStore) -> None:
    first = reference_of(bucket.url)
    folder = local_folder(first)
    bucket.write("model.safetensors", MODEL["model.safetensors"][::-1])  # as long as before
    second = reference_of(bucket.url)
    assert second != first and local_folder(second) != folder
    assert files_of(folder) == MODEL, "whoever uses the first one has it still"
    with pytest.raises(ConfigError, match="not the model that this run began with"):
        reference_of(bucket.url, revision="0" * 16)


def test_a_file_that_changes_while_it_is_fetched_leaves_nothing(
    bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_of(bucket.url)
    real = stored._fetch_into

    def slowly(staging: Path, **named: object) -> str | None:
        wrong = real(staging, **named)  # type: ignore[arg-type]
        bucket.write("config.json", b"[]")
        return wrong

    monkeypatch.setattr(stored, "_fetch_into", slowly)
    with pytest.raises(ConfigError, match=r"policy\.model = 's3://.*has changed while it was fetched; start again"):
        local_folder(reference)
    assert not is_stored_here(reference) and not list((cache_folder() / "models").glob("model-*"))


def test_a_file_that_is_cut_short_leaves_nothing(bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = reference_of(bucket.url)
    real = ObjectStore.download

    def cut(store: ObjectStore, name: str, *, path: Path, modified_s: float = 0.0) -> bool:
        done = real(store, name, path=path, modified_s=modified_s)
        if name == "model.safetensors":
            path.write_bytes(path.read_bytes()[:-1])
        return done

    monkeypatch.setattr(ObjectStore, "download", cut)
    with pytest.raises(ConfigError, match=r"model\.safetensors in it has changed"):
        local_folder(reference)
    assert not is_stored_here(reference)


def test_a_store_in_trouble_is_asked_again_and_one_that_is_away_is_one_line(door: Door, bucket: ObjectStore) -> None:
    reference = reference_of(bucket.url)
    door.trouble = Trouble(seed=3, dropped=0.2)
    with_trouble = files_of(local_folder(reference)) if not is_stored_here(reference) else {}
    assert with_trouble == MODEL
    door.trouble = Trouble(away=True)
    with pytest.raises(ConfigError) as error:
        reference_of(f"{bucket.url}-of-another-name")
    assert str(error.value).startswith("policy.model = 's3://") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("config.json", "missing: config.json"),
        ("model.safetensors", "missing: model.safetensors (weights; pytorch_model.bin is a pickle"),
        ("tokenizer.json", "missing: tokenizer.json"),
    ],
)
def test_what_a_model_at_a_url_lacks_is_said_before_anything_is_fetched(
    door: Door, bucket: ObjectStore, lacks: str, says: str
) -> None:
    bucket.remove([lacks])
    before = num_read(door)
    with pytest.raises(ConfigError) as error:
        check_policy(bucket.url)
    assert str(error.value).startswith(f"policy.model = {bucket.url!r}: ") and says in str(error.value)
    assert num_read(door) == before


def test_a_url_without_a_model_is_one_line(door: Door, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.model = 's3://bucket/.*no such folder, or nothing of a model"):
        check_policy(f"s3://bucket/{tmp_path.name}/none")
    with pytest.raises(ConfigError, match=r"policy\.model = 'ftp://.*no store of the scheme"):
        check_policy("ftp://host/model")


# ---- the scorer ----


@pytest.fixture
def clip(door: Door, tmp_path: Path) -> ObjectStore:
    store = door.store(f"{tmp_path.name}/clip")
    store.write("open_clip_config.json", json.dumps({"model_cfg": {"embed_dim": 8}}).encode())
    store.write("open_clip_model.safetensors", b"weights")
    return store


def test_a_scorer_at_a_url_becomes_a_folder_of_the_node(clip: ObjectStore) -> None:
    check_clip_source(clip.url)
    source = clip_source(clip.url)
    folder = Path(source.name.removeprefix("local-dir:"))
    assert source.weights is None and set(files_of(folder)) == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "not an open_clip folder; missing: open_clip_config.json"),
        (b"{", "open_clip_config.json is not JSON"),
        (b"{}", "has no model_cfg"),
        (b'{"model_cfg": {"text_cfg": {"trust_remote_code": true}}}', "would run its author's Python"),
    ],
)
def test_a_scorer_at_a_url_is_refused_as_a_folder_is_and_before_it_is_fetched(
    clip: ObjectStore, config: bytes | None, says: str
) -> None:
    clip.remove(["open_clip_config.json"])
    if config is not None:
        clip.write("open_clip_config.json", config)
    with pytest.raises(ConfigError) as error:
        check_clip_source(clip.url)
    assert str(error.value).startswith(f"scorer.model = {clip.url!r}: ") and says in str(error.value)
    assert not (cache_folder() / "models").exists()


def test_a_scorer_that_has_changed_since_it_was_checked_is_checked_again_where_it_runs(clip: ObjectStore) -> None:
    check_clip_source(clip.url)
    clip.write("open_clip_config.json", b'{"model_cfg": {"text_cfg": {"trust_remote_code": true}}}')
    with pytest.raises(ConfigError, match=r"scorer\.model = 's3://.*would run its author's Python"):
        clip_source(clip.url)


def test_a_scorer_without_weights_at_a_url_is_refused(clip: ObjectStore) -> None:
    clip.remove(["open_clip_model.safetensors"])
    with pytest.raises(ConfigError, match="no weights in the folder"):
        check_clip_source(clip.url)


# ---- the benchmark, prompts and pictures ----


@pytest.fixture
def held(door: Door, tmp_path: Path) -> ObjectStore:
    store = door.store(f"{tmp_path.name}/held")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    store.upload(tmp_path / "a.png", name="images/a.png")
    rows = {
        "prompts.jsonl": {"id": "a", "image": "images/a.png", "prompt": "Describe."},
        "truth.jsonl": {"id": "a", "objects": [{"kind": "ball"}]},
        "questions.jsonl": {"question_id": 1, "image": "images/a.png", "text": "Is there?", "label": "yes"},
    }
    for name, row in rows.items():
        store.write(name, json.dumps(row).encode())
    return store


def test_a_benchmark_at_a_url_is_read_as_one_in_a_folder(held: ObjectStore, tmp_path: Path) -> None:
    there = load_suite(Eval(benchmarks=("world",), data=held.url))
    folder = tmp_path / "held"
    for name in held.list():
        held.download(name, path=folder / name)
    here = load_suite(Eval(benchmarks=("world",), data=str(folder)))
    assert here == load_suite(Eval(benchmarks=("world",), data=f"file://{folder}"))
    for mine, theirs in zip((*there.describe, *there.yes_no), (*here.describe, *here.yes_no), strict=True):
        assert mine.image == f"{held.url}/images/a.png" and check_image(mine.image) is None
        assert (mine.id, mine.text) == (theirs.id, theirs.text)
    assert (there.truth, there.labels) == (here.truth, here.labels)


def test_what_a_benchmark_at_a_url_lacks_is_one_line(
    held: ObjectStore, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.write("truth.jsonl", b"not json")
    with pytest.raises(ConfigError, match=r"eval\.data = 's3://.*truth\.jsonl:1: not JSON"):
        load_suite(Eval(benchmarks=("world",), data=held.url))
    held.remove(["truth.jsonl"])
    with pytest.raises(ConfigError, match=r"eval\.data = 's3://.*: it has no truth\.jsonl"):
        load_suite(Eval(benchmarks=("world",), data=held.url))
    monkeypatch.setattr("csr_ray.data.files.STORE_S", 1.0)
    door.trouble = Trouble(away=True)
    with pytest.raises(ConfigError, match=r"eval\.data = 's3://.*: prompts\.jsonl: cannot be read"):
        load_suite(Eval(benchmarks=("world",), data=held.url))


@pytest.mark.parametrize("images", [None, "images"])
def test_prompts_and_pictures_are_read_from_a_bucket(held: ObjectStore, images: str | None) -> None:
    name = "images/a.png" if images is None else "a.png"
    rows = [
        {"id": "a", "image": name, "prompt": "Describe."},
        {"id": "b", "image": "none.png", "prompt": "Describe."},
    ]
    held.write("set.jsonl", "\n".join(map(json.dumps, rows)).encode())
    folder = None if images is None else f"{held.url}/{images}"
    prompts, rejections = read_prompts(f"{held.url}/set.jsonl", images=folder, limit=None)
    assert [(prompt.id, prompt.image) for prompt in prompts] == [("a", f"{held.url}/images/a.png")]
    assert [(one.id, one.fault) for one in rejections] == [("b", "input")] and "no such file" in rejections[0].reason
    stream = PromptFile(f"{held.url}/set.jsonl", images=folder, limit=None)
    assert [prompt.id for prompt in stream.take()] == ["a", "b"]


def test_prompts_that_cannot_be_had_are_one_line(door: Door, held: ObjectStore) -> None:
    with pytest.raises(ConfigError, match=r"data\.prompts = 's3://.*: no such file"):
        PromptFile(f"{held.url}/none.jsonl", images=None, limit=None)
    with pytest.raises(ConfigError, match=r"data\.prompts = 's3://no-such-bucket/"):
        PromptFile("s3://no-such-bucket/none.jsonl", images=None, limit=None)


def test_a_picture_behind_a_store_that_is_away_is_the_machines_fault(
    door: Door, held: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csr_ray.data.files.STORE_S", 1.0)
    door.trouble = Trouble(away=True)
    error = check_image(f"{held.url}/images/a.png")
    assert error is not None and error.fault == "machine" and "\n" not in str(error)
