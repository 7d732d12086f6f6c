"""The bridge to lmms-eval, with the real package: installed as users do, asked offline, and held to our own marks.

It is installed once, into this user's cache, by what `csr-ray eval --suite lmms-eval --lmms-install` does. Where the
package index does not answer, or too slowly, the tests are skipped: then nothing has shown that lmms-eval still takes
the command line, the task and the endpoint that it is given, nor that its files are still read rightly. What of the
bridge is ours alone is in tests/unit/test_lmms_bridge.py and tests/ray/test_served_policy.py, which skip nothing.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lmms_task import METRICS, NAME, write_task
from PIL import Image

from csr_ray.__main__ import main
from csr_ray.app.lmms_environment import REQUIREMENTS, known_python
from csr_ray.app.lmms_eval import SuiteFlags, _written, suite_command
from csr_ray.errors import UserError
from csr_ray.evaluation.lmms_results import read_results
from csr_ray.world.build import WorldSpec, cached_world

INDEX_S = 60
INSTALL_S = 240
NUM = 64


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def lmms_eval() -> None:
    if known_python(None) is not None:
        return
    client = ["-m", "uv", "pip"] if importlib.util.find_spec("uv") is not None else ["-m", "pip"]
    asked = [sys.executable, *client, "install", "--dry-run", "--no-deps", REQUIREMENTS[0]]
    try:
        answered = subprocess.run(asked, capture_output=True, text=True, timeout=INDEX_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"no package index answers within {INDEX_S} s, so lmms-eval cannot be installed")
    if answered.returncode:
        pytest.skip(f"no package index has {REQUIREMENTS[0]}, so it cannot be installed: {answered.stderr[-300:]}")
    code = "from csr_ray.app.lmms_environment import install; install(say=print)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as installing:
        try:
            _, said = installing.communicate(timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            installing.send_signal(signal.SIGINT)  # it removes what is half done
            pytest.skip(f"the package index is too slow: lmms-eval was not installed within {INSTALL_S} s")
    assert installing.returncode == 0, said


def greedy_answers(policy: Path, *, rows: list[dict], pictures: Path) -> list[str]:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(policy)
    model = LlavaForConditionalGeneration.from_pretrained(policy).eval()
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["text"]}]}],
            add_generation_prompt=True,
        )
        for row in rows
    ]
    images = [Image.open(pictures / row["image"]).convert("RGB") for row in rows]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    answers = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


@pytest.mark.long
@pytest.mark.usefixtures("lmms_eval")
def test_lmms_eval_measures_the_policy_offline_and_its_figures_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = cached_world(WorldSpec.quick(), progress=False)
    tasks = write_task(tmp_path / "tasks", heldout=world / "heldout", num=NUM)
    here = tmp_path / "here"
    here.mkdir()
    (here / "datasets.py").write_text("raise SystemExit('taken for the package of that name')\n")
    monkeypatch.chdir(here)
    output, kept = tmp_path / "suite.json", tmp_path / "kept"
    flags = ["--tasks", NAME, "--tasks-dir", str(tasks), "--lmms-install", "--out", str(kept), "--json", str(output)]
    assert main(["eval", "--model", str(world / "policy"), "--suite", "lmms-eval", *flags]) == 0

    found = json.loads(output.read_text())
    assert (found["benchmark"], found["n"], found["tasks"][NAME]["version"]) == ("lmms-eval", NUM, 1.0)
    assert found["suite"]["version"] == REQUIREMENTS[0].partition("==")[2]

    # What it was answered is what the model says to our prompt about the picture as it is.
    rows = [json.loads(line) for line in (world / "heldout" / "questions.jsonl").read_text().splitlines()[:NUM]]
    (samples,) = kept.rglob(f"*_samples_{NAME}.jsonl")
    said = {row["doc_id"]: row["filtered_resps"] for row in map(json.loads, samples.open())}
    assert [said[place] for place in range(NUM)] == greedy_answers(
        world / "policy", rows=rows, pictures=world / "heldout"
    )
    assert set(said.values()) == {"Yes", "No"}, "neither figure is 0 or 1 by nature"

    # Its marks of them are ours.
    answers, own = tmp_path / "answers.jsonl", tmp_path / "own.json"
    answers.write_text(
        "".join(
            json.dumps({"question_id": row["question_id"], "text": said[place]}) + "\n"
            for place, row in enumerate(rows)
        )
    )
    truth = ["--truth", str(tasks / "questions.jsonl")]
    assert main(["score-answers", "--benchmark", "pope", "--answers", str(answers), *truth, "--json", str(own)]) == 0
    ours = json.loads(own.read_text())["metrics"]
    theirs = {metric: found["metrics"][f"{NAME}/pope_{metric}"] for metric in METRICS}
    assert theirs.pop("yes_ratio") == 0.5, "of the questions; ours is that of the answers"
    assert 0 < theirs["accuracy"] < 1 and ours["yes_ratio"] != 0.5
    assert theirs == pytest.approx({metric: ours[metric.removesuffix("_score")] for metric in theirs})


@pytest.mark.long
@pytest.mark.usefixtures("lmms_eval")
def test_requests_that_fail_are_no_figures_as_it_writes_them(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    row = {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    flags = SuiteFlags(tasks=(NAME,), tasks_dir=write_task(tmp_path / "tasks", heldout=tmp_path, num=1))
    with socket.socket() as nobody:  # who listens there
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        command = suite_command(str(known_python(None)), flags=flags, url=url, results=tmp_path)
        file = _written(command, results=tmp_path, log=tmp_path / "log")
    with pytest.raises(UserError, match=rf"marked requests that failed as wrong answers \({NAME}: 1\)"):
        read_results(file, tasks=flags.tasks)
