"""No password, key, token or signature gets into a run folder or onto the screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from test_loop import Driver

from csr_ray.__main__ import main
from csr_ray.config.load import parse_config
from csr_ray.errors import ConfigError
from csr_ray.records import Rejection
from csr_ray.redaction import has_credentials, without_credentials
from csr_ray.report import write_report
from csr_ray.stages.state import RunState

SECRET = "hUsh/Hush+42"
URLS = (
    f"https://me:{SECRET.replace('/', '')}@host/p.jsonl",
    "https://hUshHush42@host/p.jsonl",
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/p.jsonl",
    "simplecache::s3://AKIA:hUshHush42@bucket/p.jsonl",
    "https://host/p.jsonl?token=hUshHush42",
    "https://host/p.jsonl?a=b&sig=hUshHush42&c=d",
    "https://account.blob.core.windows.net/c/p.jsonl?sv=2024&sig=hUshHush42",
    "https://bucket.s3.amazonaws.com/p.jsonl?X-Amz-Credential=hUshHush42&X-Amz-Signature=hUshHush42",
    "https://storage.googleapis.com/b/p.jsonl?X-Goog-Signature=hUshHush42",
    "https://host/p.jsonl?api_key=hUshHush42",
    "https://host/p.jsonl?access_token=hUshHush42#x",
    "https://host/p.jsonl?password=hUshHush42",
)
HARMLESS = (
    "p.jsonl",
    "/data/me@home/p.jsonl",
    "s3://bucket/a@2x.png",
    "https://host/p.jsonl?size=3",
    "abfs://container@account.dfs.core.windows.net/p.jsonl",
    "hf://datasets/owner/name@main/p.jsonl",
    "https://host/what?monkey=1",
    "file:///a?token",
)
ENVIRONMENT = (
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "WANDB_API_KEY",
    "RAY_AUTH_TOKEN",
    "MY_PASSWORD",
)


def spoken_of(folder: Path) -> list[str]:
    """The files below a folder in which the secret stands."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and b"hUsh" in path.read_bytes()]


@pytest.mark.parametrize("url", URLS)
def test_credentials_in_a_url_are_found_and_hidden(url: str) -> None:
    assert has_credentials(url)
    assert "hUsh" not in without_credentials(url)
    assert "hUsh" not in without_credentials(f"cannot read {url}: 403, see https://docs.host/x")


@pytest.mark.parametrize("url", HARMLESS)
def test_other_urls_are_left_as_they_are(url: str) -> None:
    assert not has_credentials(url) and without_credentials(url) == url


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "key", ["data.prompts", "data.images", "policy.model", "scorer.model", "eval.data", "run.dir"]
)
def test_a_config_with_credentials_is_refused_without_saying_them(url: str, key: str) -> None:
    tree: dict[str, Any] = {"data": {"prompts": "p"}, "policy": {"model": "m"}, "scorer": {"model": "c"}}
    section, name = key.split(".")
    tree.setdefault(section, {})[name] = url
    with pytest.raises(ConfigError, match=rf"^{key} = .*\*\*\*") as caught:
        parse_config(tree)
    assert "hUsh" not in str(caught.value)


def test_rows_and_environment_leave_no_secret_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, SECRET)
    model = tmp_path / "model"
    model.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (model / file).write_text("{}")
    rows = [{"id": str(number), "image": url, "prompt": "?"} for number, url in enumerate(URLS)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"prompts": str(tmp_path / "p.jsonl"), "urls": True},
        "policy": {"model": str(model)},
        "scorer": {"model": "ViT-B-32-quickgelu/openai"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", str(tmp_path / "c.yaml")]) == 3, "no row can be used"
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == len(URLS)
    said = capfd.readouterr()
    assert spoken_of(tmp_path / "run") == [] and "hUsh" not in said.out + said.err


def test_a_whole_run_writes_nothing_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("csr_ray.policy.weights.save_merged", lambda base, *, output, **_: _no_rounding(output))
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, SECRET)
    driver = Driver(tmp_path / "run")
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "1.png")
    driver.run(fail_ids=frozenset({"p1"}))
    state: RunState = driver.state()
    state.quarantine.add([Rejection(id="x", source="s", reason="r")])
    write_report(driver.folder.root)
    said = capfd.readouterr()
    assert spoken_of(tmp_path / "run") == [] and "hUsh" not in said.out + said.err


def _no_rounding(output: Path) -> Any:
    from csr_ray.policy.weights import Rounding

    output.mkdir(exist_ok=True)
    return Rounding()
