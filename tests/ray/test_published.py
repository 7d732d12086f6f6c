"""What a run gives away is what its cards say: their code is run, their servers are started, and all answer alike."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_servers import START_S, served
from PIL import Image
from rich.console import Console

from csr_ray.app.kept_run import kept_run
from csr_ray.app.pairs import export_pairs
from csr_ray.app.push import Push, put_together
from csr_ray.machine.placement import serves_on_gpus
from csr_ray.report.cards import THE_BASE, THE_RUN, THIS_FOLDER, is_as_written
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import CARD, RunFolder

SERVING = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def base(finished: RunFolder) -> Path:
    found = Journal(finished.journal).find("model")
    assert found is not None
    return Path(found["name"])


@pytest.fixture(scope="module")
def picture(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the picture that the code of cards opens."""
    folder = tmp_path_factory.mktemp("picture")
    first = sorted((base.parent / "heldout" / "images").iterdir())[0]
    Image.open(first).convert("RGB").save(folder / "picture.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def sum_of_all(finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `csr-ray push --what adapter` sends."""
    folder = tmp_path_factory.mktemp("sum")
    with kept_run(str(finished.root), is_wanted=lambda name: True) as run:
        put_together(run, folder=folder, asked=Push(repo_id=THIS_FOLDER, what="adapter"))
    return folder


def blocks(card: Path, *, language: str = "python", **places: Path | str) -> list[str]:
    """The code of a card, with places put in."""
    text = card.read_text(encoding="utf-8")
    for name, place in {THIS_FOLDER: card.parent, **places}.items():
        text = text.replace(name, str(place))
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_code(code: str, *, folder: Path) -> tuple[str, dict[str, Any]]:
    """What a block prints when it is run in a folder, and what it leaves behind."""
    said, names, before = io.StringIO(), dict[str, Any](), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(code, "card", "exec"), names)
    finally:
        os.chdir(before)
    return said.getvalue().strip(), names


def logits(names: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = names["model"](**names["inputs"]).logits
    return found


def test_every_card_is_there_and_the_run_is_as_sound_as_without(finished: RunFolder) -> None:
    cards = [finished.model / CARD, *(finished.round(index) / "adapter" / CARD for index in range(3))]
    assert all(is_as_written(card.read_text(encoding="utf-8")) for card in cards)
    text = cards[0].read_text(encoding="utf-8")
    assert "the model after 3 rounds" in text and "CHAIR\\_s" in text
    assert str(finished.root) not in text and str(Path.home()) not in text


def test_the_cards_code_gives_one_policy_merged_as_adapters_and_as_their_sum(
    finished: RunFolder, base: Path, sum_of_all: Path, picture: Path
) -> None:
    last = finished.round(2) / "adapter" / CARD
    found = {
        "model": run_code(blocks(finished.model / CARD)[0], folder=picture),
        "adapters": run_code(blocks(last, **{THE_BASE: base, THE_RUN: finished.root})[0], folder=picture),
        "sum": run_code(blocks(sum_of_all / CARD, **{THE_BASE: base})[0], folder=picture),
    }
    before = run_code(blocks(finished.model / CARD, **{str(finished.model): base})[0], folder=picture)
    assert found["model"][0]
    assert {said for said, _ in found.values()} == {found["model"][0]}
    expected = logits(found["model"][1])
    for _, names in found.values():
        torch.testing.assert_close(logits(names), expected, rtol=1e-3, atol=1e-3)
    assert (logits(before[1]) - expected).abs().max() > 1e-2, "what was trained is in it"


def test_trl_trains_on_the_data_set_by_the_code_of_its_card(finished: RunFolder, tmp_path: Path) -> None:
    output = tmp_path / "pairs"
    export_pairs(str(finished.root), output=output, embeds=True, console=Console(quiet=True))
    first, second = blocks(output / CARD)
    second = second.replace("owner/a-vision-language-model", str(finished.model)).replace(
        'output_dir="dpo",', 'output_dir="dpo", use_cpu=True, bf16=False, report_to=[], max_steps=1,'
    )
    said, names = run_code(first + second, folder=tmp_path)
    assert names["trainer"].state.global_step == 1
    assert len(names["rows"]) == sum(
        line["made"] for line in Journal(finished.journal).all("examples")
    ) and "'role': 'user'" in said  # fmt: skip


# ---- served ----


@pytest.mark.long
def test_a_server_started_as_the_card_says_answers_a_standard_client_as_transformers_does(
    finished: RunFolder, picture: Path, tmp_path: Path
) -> None:
    card = finished.model / CARD
    (command,) = blocks(card, language="bash")
    in_transformers, asking = blocks(card)
    expected, _ = run_code(in_transformers, folder=picture)
    with served(command, log=tmp_path / "log") as url:
        said, names = run_code(asking.replace("http://localhost:8000/v1", url), folder=picture)
    assert said == expected
    assert names["answer"].model == str(finished.model)


@pytest.mark.long
def test_a_lora_served_beside_the_base_as_its_card_says_answers_as_peft_does(
    base: Path, sum_of_all: Path, picture: Path, tmp_path: Path
) -> None:
    card = sum_of_all / CARD
    (command,) = blocks(card, language="bash", **{THE_BASE: base})
    in_peft, asking = blocks(card, **{THE_BASE: base})
    expected, _ = run_code(in_peft, folder=picture)
    with served(command, log=tmp_path / "log") as url:
        asking = asking.replace("http://localhost:8000/v1", url)
        said, _ = run_code(asking, folder=picture)
        of_base, _ = run_code(asking.replace('model="policy"', f'model="{base}"'), folder=picture)
    assert said == expected
    assert of_base != said, "the base answers under its own name"


@pytest.mark.long
def test_the_server_and_the_client_of_the_document_work(finished: RunFolder, picture: Path, tmp_path: Path) -> None:
    text = SERVING.read_text(encoding="utf-8").replace("runs/tiny-world/model", str(finished.model))
    commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    (asking,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    command = next(command for command in commands if command.startswith("python -m"))
    with served(command, log=tmp_path / "log") as url:
        said, _ = run_code(asking.replace("http://localhost:8000/v1", url), folder=picture)
    assert said


@pytest.mark.long
@pytest.mark.skipif(serves_on_gpus(), reason="the GPU build's command works")
def test_the_command_of_the_cpu_build_does_not_start_as_the_document_says(finished: RunFolder) -> None:
    """If it does one day, docs/serving.md and the cards have one thing less to explain."""
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(finished.model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
    assert done.returncode != 0


@pytest.mark.long
def test_a_server_is_asked_for_the_first_token_where_the_template_leaves_it_out(
    tiny_llava: Path, tmp_path: Path
) -> None:
    """The line that a card of such a model has gives the prompt that the run itself asks."""
    from openai import OpenAI

    from csr_ray.data.chat import prompt_ids
    from csr_ray.policy.processor import load_processor
    from csr_ray.policy.start_token import leaves_start_to_tokenizer

    assert leaves_start_to_tokenizer(tiny_llava)
    expected = prompt_ids(load_processor(str(tiny_llava)), question="How many dogs?")
    with served(f"vllm serve {tiny_llava} --dtype float32 --generation-config vllm", log=tmp_path / "log") as url:
        client = OpenAI(base_url=url, api_key="none")
        content = [{"type": "text", "text": "How many dogs?"}]
        counts = []
        for more in ({}, {"add_special_tokens": True}):
            answer = client.chat.completions.create(
                model=str(tiny_llava),
                messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
                temperature=0,
                max_tokens=1,
                extra_body=more,
            )
            assert answer.usage is not None
            counts.append(answer.usage.prompt_tokens)
    # Without a picture, whose token and new line are in the expected prompt.
    assert counts[1] == counts[0] + 1 and len(expected) >= counts[1]
