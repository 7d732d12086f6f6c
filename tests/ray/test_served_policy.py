"""The policy behind vLLM's own server: as a judge, and asked exactly as a generator asks it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from csr_ray.app.served import served_policy
from csr_ray.config.schema import Judge as JudgeKeys
from csr_ray.data.chat import prompt_ids
from csr_ray.errors import ActorFailure, ConfigError
from csr_ray.judging.kept import ReplyFile
from csr_ray.judging.openai_judge import OpenAIJudge
from csr_ray.policy.processor import load_processor
from csr_ray.records import Message


@pytest.fixture(scope="module")
def endpoint(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    work = tmp_path_factory.mktemp("served")
    with served_policy(tiny_llava, dtype="float32", gpus=0, log=work / "log", work=work, start_s=400) as url:
        yield url


def judged(keys: JudgeKeys, path: Path) -> str:
    async def ask() -> str:
        async with OpenAIJudge(keys, replies=ReplyFile(path)) as judge:
            return await judge.reply([Message("user", "How many dogs?")], temperature=0.0, max_tokens=4)

    return asyncio.run(ask())


def test_vllms_own_server_is_a_judge(endpoint: str, tmp_path: Path) -> None:
    keys = JudgeKeys(url=endpoint, model="policy")
    first = judged(keys, tmp_path / "a.jsonl")
    assert first == judged(keys, tmp_path / "b.jsonl"), "greedy"
    kept = ReplyFile(tmp_path / "a.jsonl")
    assert 0 < kept.spent.output_tokens <= 4 and kept.spent.input_tokens > 4


def test_a_model_that_it_does_not_serve_and_a_wrong_path_are_said(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^judge\.model = 'gpt-4': .*it has policy$"):
        judged(JudgeKeys(url=endpoint, model="gpt-4"), tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"^judge\.url = .*it answers 404.*mostly is http://127\.0\.0\.1:\d+/v1"):
        judged(JudgeKeys(url=endpoint.removesuffix("/v1"), model="policy"), tmp_path / "a.jsonl")


def test_what_is_asked_there_is_the_prompt_that_a_generator_asks(endpoint: str, tiny_llava: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "How many dogs?"}]
    body = {"model": "policy", "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(
        endpoint.removesuffix("/v1") + "/tokenize",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    served = json.load(urllib.request.urlopen(request, timeout=60))["tokens"]
    processor = load_processor(str(tiny_llava))
    image_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    once = [token for place, token in enumerate(served) if token != image_id or served[place - 1] != image_id]
    assert once == prompt_ids(processor, question="How many dogs?")


@pytest.mark.long
def test_a_folder_that_is_no_model_fails_with_the_servers_last_words(tiny_llava: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for path in tiny_llava.iterdir():
        (broken / path.name).symlink_to(path)
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").write_bytes(b"not weights")
    with (
        pytest.raises(ActorFailure, match=r"vLLM's server ended with code \d+; last lines of .*log:\n"),
        served_policy(broken, dtype="float32", gpus=0, log=tmp_path / "log", work=tmp_path, start_s=400),
    ):
        pass
