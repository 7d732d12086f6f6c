"""csr-ray watch over real HTTP: who may ask, what it shows of a run as it grows, and that it only reads."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from report_runs import words, write_round
from watched_runs import Asker, SyntheticRun, eventually, watching

from csr_ray.__main__ import main
from csr_ray.app.console import ConsoleView
from csr_ray.app.watch import _waits_for
from csr_ray.report.live import Seen, live_of
from csr_ray.report.read import RunReader
from csr_ray.stages.progress import ProgressFile, ProgressView
from csr_ray.store.journal import Journal
from csr_ray.store.lock import lock_folder
from csr_ray.store.pool_events import write_event
from csr_ray.store.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def begun(tmp_path: Path) -> SyntheticRun:
    """A run that has rolled out two units of its first round."""
    run = SyntheticRun(tmp_path / "run", unit=4)
    run.begin()
    list(run.roll_out(0, num_prompts=8))
    return run


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    SyntheticRun(tmp_path / "run", unit=4).whole(num_pairs=60)
    return tmp_path / "run"


# ---- who may ask ----

PATHS = ("", "state", "pairs", "tree?number=0", "style.css", "script.js", "picture/pair/0/0", "picture/tree/0", "no")

NO_PATHS = (
    "config.yaml", "../config.yaml", "..%2fconfig.yaml", "picture/%2fetc%2fpasswd", "picture/pair/0/-1",
    "picture/pair/99/0", "picture/pair/0/999999", "picture/tree/999999", "tree?number=999999", "report.html.j2",
    "parts/now.html.j2",
)  # fmt: skip


def test_the_page_listens_on_this_machine_only(finished: Path) -> None:
    with watching(finished) as asker:
        assert asker.server.server_address[0] == "127.0.0.1" and len(asker.server.token) >= 32


def test_a_request_without_the_token_is_refused(finished: Path) -> None:
    with watching(finished) as asker:
        asker.page()
        for path in PATHS:
            for token in ("", "x", "watch", "..", asker.server.token[:-1], asker.server.token + "x"):
                status, said, _ = asker.get(path, token=token)
                assert status == 403 and b"csr-ray watch printed" in said and b"circle" not in said, (path, token)


def test_a_request_under_another_name_is_refused(finished: Path) -> None:
    with watching(finished) as asker:
        for host in ("evil.example", "127.0.0.1.evil.example", "0.0.0.0", ""):
            asker.headers = {"Host": host}
            assert all(asker.get(path)[0] == 403 for path in PATHS), host
        asker.headers = {"Host": "localhost:8080"}
        assert asker.get("")[0] == 200, "a tunnel may end at any port"


def test_nothing_can_be_sent_to_it(finished: Path) -> None:
    with watching(finished) as asker:
        asker.headers = {"Origin": "http://evil.example", "Content-Length": "0"}
        assert asker.get("", method="POST")[0] == 403
        asker.headers = {"Origin": f"http://127.0.0.1:{asker.server.server_address[1]}", "Content-Length": "9"}
        assert asker.get("", method="POST")[0] == 413
        asker.headers["Content-Length"] = "0"
        assert asker.get("", method="POST")[0] == 404


def test_every_answer_forbids_what_the_page_does_not_need(finished: Path) -> None:
    with watching(finished) as asker:
        for path in PATHS:
            headers = asker.get(path)[2]
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


def test_no_path_leads_to_a_file(finished: Path) -> None:
    with watching(finished) as asker:
        for path in NO_PATHS:
            status, said, _ = asker.get(path)
            assert status == 404 and said == b"There is nothing here.\n", path


def test_what_is_asked_in_another_way_than_it_can_be_is_refused_in_words(finished: Path) -> None:
    with watching(finished) as asker:
        for path in ("pairs?order=best", "pairs?first=x", "pairs?low=nan", "state?since=now", "tree?number=-7"):
            status, said, _ = asker.get(path)
            assert status == 400 and said.decode().endswith(".\n"), path


def test_a_picture_is_pixels_that_were_drawn_anew_and_no_other_file_can_be_one(finished: Path) -> None:
    with watching(finished) as asker:
        for path in ("picture/pair/0/0", "picture/tree/0"):
            status, content, headers = asker.get(path)
            assert (status, headers["Content-Type"]) == (200, "image/png")
            with Image.open(io.BytesIO(content)) as image:
                assert image.size == (64, 48) and not image.info
    for image in (finished.parent / "run-images").iterdir():
        image.unlink()
        image.symlink_to(finished / "config.yaml")
    with watching(finished) as asker:
        assert asker.get("picture/pair/0/0")[0] == 404


def test_a_picture_of_the_web_is_not_fetched_unless_the_run_might(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("csr_ray.report.pictures.load_image", asked.append)
    write_round(tmp_path, image="https://example.org/a.png")
    with watching(tmp_path) as asker:
        assert asker.get("picture/pair/0/0")[0] == 404
    assert asked == []


def test_no_text_of_the_run_becomes_an_element_or_an_attribute(tmp_path: Path) -> None:
    attack = "<img src=x onerror=alert(1)>"
    pages, states = [], []
    for name, text in (("plain", "words"), ("evil", attack)):
        run = tmp_path / name / "run"
        run.mkdir(parents=True)
        write_round(run, text=text, prompt=text, image=text, id=text)
        (run / "quarantine.jsonl").write_text(json.dumps({"id": text, "source": text, "reason": text}) + "\n")
        (run / "progress.json").write_text(
            json.dumps({"said": [{"time": 1.0, "line": text}], "done": [{"stage": text, "unit": text, "note": text}]})
        )
        (run / "logs").mkdir()
        write_event(run / "logs", "lost", replica=text, reason=text)
        with watching(run) as asker:
            eventually(lambda asker=asker: not asker.state()["reading"])
            pages.append(asker.page())
            states.append("".join(asker.state()["parts"].values()))
    assert attack not in pages[1] + states[1] and "&lt;img src=x" in states[1]
    for plain, evil in (pages, states):
        assert re.findall(r"<(\w+)", plain) == re.findall(r"<(\w+)", evil)


# ---- a run that grows ----


def test_a_folder_without_a_run_is_told_from_one_with_it(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "empty").mkdir()
    folders = (tmp_path / "gone", tmp_path / "empty", finished)
    said = [_waits_for(RunFolder(folder), name="NAME") for folder in folders]
    assert "NAME is not there yet" in said[0]
    assert "no run has begun in NAME" in said[1]
    assert said[2] == ""


def test_it_waits_for_a_run_that_is_not_there_and_shows_it_when_it_comes(tmp_path: Path) -> None:
    with watching(tmp_path / "run") as asker:
        page = asker.page()
        assert "The run has not begun" in page and "Waiting for" in page and "<h2>Now</h2>" in page
        number = asker.state()["number"]
        (tmp_path / "run").mkdir()
        time.sleep(0.3)
        assert asker.state()["state"] == "waiting", "an empty folder is no run"
        run = SyntheticRun(tmp_path / "run", unit=4)
        run.begin()
        list(run.roll_out(0, num_prompts=4))
        state = eventually(lambda: (s := asker.state(number))["facts"] and s["facts"]["trees"]["num"] == 4 and s)
        assert "45.0 % of the base model" in state["parts"]["head"]


def test_trees_come_unit_by_unit_and_the_newest_has_the_highest_number(begun: SyntheticRun) -> None:
    with watching(begun.folder.root) as asker:
        assert eventually(lambda: asker.state()["facts"]["trees"]["num"]) == 8
        assert asker.json("tree", number=7)["id"] == "p000007"
        number = asker.state()["number"]
        list(begun.roll_out(0, num_prompts=4))
        eventually(lambda: (facts := asker.state(number)["facts"]) and facts["trees"]["num"] == 12)
        tree = asker.json("tree", number=11)
        assert (tree["id"], tree["place"], tree["prompt"]) == (
            "p000011",
            "round 1",
            "Describe the picture number 11.",
        )
        kept = [node for node in tree["nodes"] if node["kept"]]
        assert kept and all(node["parent"] is None or node["parent"] < node["node"] for node in tree["nodes"])
        assert {len(tree["chosen"]), len(tree["rejected"])} <= {1, 2, 3}, "its pair is made, though not decided"
        assert tree["nodes"][tree["chosen"][-1]]["final"]


def test_only_what_has_changed_is_sent(begun: SyntheticRun) -> None:
    with watching(begun.folder.root) as asker:
        eventually(lambda: not asker.state()["reading"])
        time.sleep(1.0)
        state = asker.state()
        again = asker.state(state["number"])
        assert again["parts"] == {} and again["facts"] is None and again["news"] == []
        begun.decide(0)
        begun.finish_round(0)
        later = eventually(lambda: (s := asker.state(state["number"]))["parts"].get("quality") and s)
        assert "config" not in later["parts"] and later["facts"]["num"] >= 1
        eventually(lambda: "1 round is done." in asker.state(state["number"])["news"])


def test_half_a_line_of_the_journal_costs_nothing(begun: SyntheticRun) -> None:
    path = begun.folder.journal
    whole = path.read_bytes()
    with watching(begun.folder.root) as asker:
        assert eventually(lambda: asker.state()["facts"]["trees"]["num"]) == 8
        list(begun.roll_out(0, num_prompts=4))
        line = path.read_bytes()[len(whole) :]
        path.write_bytes(whole)
        for num_bytes in (1, 40, len(line) - 5, len(line) - 1):
            with path.open("ab") as file:
                file.truncate(len(whole))
                file.write(line[:num_bytes])
            time.sleep(0.5)
            state = asker.state()
            assert "could not be read" not in state["parts"]["head"], num_bytes
            if num_bytes < len(line) - 1:
                assert state["facts"]["trees"]["num"] == 8, num_bytes
        eventually(lambda: asker.state()["facts"]["trees"]["num"] == 12)  # it lacks its newline alone
        with path.open("ab") as file:
            file.write(line[-1:])
        begun.journal = Journal(path)
        list(begun.roll_out(0, num_prompts=4))
        eventually(lambda: asker.state()["facts"]["trees"]["num"] == 16)


def test_a_damaged_journal_is_named_and_the_rest_is_shown(begun: SyntheticRun) -> None:
    path = begun.folder.journal
    path.write_bytes(path.read_bytes().replace(b'"seconds": 12.5', b'"seconds": 99.5'))
    with watching(begun.folder.root) as asker:
        head = asker.part("head")
        assert "journal.jsonl could not be read" in head and "checksum" in head
        assert asker.state()["facts"]["trees"]["num"] == 8, "the files of candidates are there"


def test_work_that_is_voided_leaves_the_page(begun: SyntheticRun) -> None:
    with watching(begun.folder.root) as asker:
        assert eventually(lambda: asker.state()["facts"]["trees"]["num"]) == 8
        unit = begun.journal.units(round=0, phase="main").names[0]
        begun.journal.again([{"round": 0, "phase": "main", "what": "unit", "unit": unit, "reason": "damaged"}])
        eventually(lambda: asker.state()["facts"]["trees"]["num"] == 4)
        assert asker.json("tree", number=0)["id"] == "p000004"


def test_a_run_that_is_started_anew_in_its_place_is_shown_instead(begun: SyntheticRun, tmp_path: Path) -> None:
    with watching(begun.folder.root) as asker:
        assert eventually(lambda: asker.state()["facts"]["trees"]["num"]) == 8
        begun.folder.root.rename(tmp_path / "earlier")
        eventually(lambda: asker.state()["state"] == "waiting")
        other = SyntheticRun(tmp_path / "run", unit=4, seed=7)
        other.begin()
        list(other.roll_out(0, num_prompts=4))
        eventually(lambda: asker.state()["facts"]["trees"]["num"] == 4)


# ---- what it says of a run ----


def test_the_running_stage_has_rate_and_time_left_and_who_works_is_seen(begun: SyntheticRun) -> None:
    lock = lock_folder(begun.folder, say=print)
    file = ProgressFile(begun.folder.progress)
    view = ProgressView(ConsoleView(num_rounds=3), file=file)
    try:
        with watching(begun.folder.root) as asker, file.kept():
            view.say("the pairs are few", is_warning=True)
            with view.stage("roll out", total=40, unit="prompts", round_index=0) as stage:
                for _ in range(10):
                    stage.advance(tokens=30)
                    time.sleep(0.02)
                part = eventually(lambda: "10 of 40 prompts" in (part := asker.part("now")) and part)
                text = words(part)
                assert "Round 1 of 3: roll out: 10 of 40 prompts" in text
                assert "prompts a second" in text and "tokens a second" in text and "left" in text
                assert 'value="0.2500"' in part and "the pairs are few" in text
                assert asker.state()["state"] == "running"
            with view.stage("train", total=None, unit="steps", round_index=0) as stage:
                stage.set(done=3, total=12, loss=0.5)
                text = eventually(lambda: "train: 3 of 12 steps" in (text := words(asker.part("now"))) and text)
                assert "loss 0.500" in text and "roll out 10 of 40 prompts" in text, "the stage before is still there"
            assert "Now: round 1 of 3: train." in asker.state()["news"]
    finally:
        lock.release()


@pytest.mark.parametrize(
    "stage, said",
    [
        # It waited 100 s for its workers, and then made two steps a second; how many are needed shows on the way.
        (
            {"stage": "train", "unit": "steps", "done": 21, "total": 101, "seconds": 110.0, "first": [1, 100.0]},
            "Train: 21 of 101 steps, 2.0 steps a second, at most 40 s left.",
        ),
        (
            {"stage": "evaluate", "unit": "answers", "done": 50, "total": 100, "seconds": 25.0, "first": None},
            "Evaluate: 50 of 100 answers, 2.0 answers a second, about 25 s left.",
        ),
        (
            {"stage": "start the machinery", "unit": "", "done": 0, "total": None, "seconds": 12.0, "first": None},
            "Start the machinery: for 12.0 s, not ready: 0 generators.",
        ),
        ({"stage": "train", "unit": "steps", "done": "x", "seconds": None, "first": [None, {}]}, "Train: for 0.0 s"),
    ],
)
def test_a_stage_is_told_by_what_is_done_since_it_began(begun: SyntheticRun, stage: dict, said: str) -> None:
    begun.folder.progress.write_text(json.dumps({"running": [stage], "health": "not ready: 0 generators"}))
    run = RunReader(begun.folder).read()
    assert live_of(run, seen=Seen(holder="host, pid 1", is_alive=True)).sentence.startswith(said)


def test_deaths_and_replacements_are_counted_and_told(begun: SyntheticRun) -> None:
    with watching(begun.folder.root) as asker:
        number = eventually(lambda: asker.state()["number"] + 1) - 1
        assert asker.part("actors") == ""
        begun.folder.logs.mkdir()
        write_event(begun.folder.logs, "lost", replica="generator 1", reason="its process was killed")
        write_event(begun.folder.logs, "serves again", replica="generator 1 (life 1)", seconds=41.0)
        write_event(begun.folder.logs, "lost", replica="train worker 0", reason="is silent")
        write_event(begun.folder.logs, "grows", replica="scorer 2")
        text = eventually(lambda: "scorer 2" in (text := words(asker.part("actors"))) and text)
        assert "lost 2 times in this run, and 1 time one served again" in text
        assert "generators – – – – 1 1" in text and "train workers – – – – 1 0" in text
        assert "its process was killed" in text and "41 s after it was lost" in text
        news = asker.state(number)["news"]
        assert "generator 1: lost." in news and "generator 1 (life 1): serves again." in news


def test_what_was_set_aside_is_counted_by_reason_as_it_comes(begun: SyntheticRun) -> None:
    with watching(begun.folder.root) as asker:
        assert "No input was left out." in eventually(lambda: asker.part("aside"))
        begun.set_aside(["image gone"] * 3 + ["too long"])
        text = eventually(lambda: "4 inputs were left out" in (text := words(asker.part("aside"))) and text)
        assert "image gone 3" in text and "too long 1" in text
        with begun.folder.quarantine.open("a") as file:
            file.write('{"id": "x", "reason": "hal')
        time.sleep(0.3)
        assert "4 inputs were left out" in words(asker.part("aside")), "it is being written"


def test_an_open_round_stands_in_the_table_of_work(begun: SyntheticRun) -> None:
    with watching(begun.folder.root) as asker:
        text = words(eventually(lambda: asker.part("work")))
        nodes = int(begun.journal.units(round=0, phase="main").total("nodes"))
        assert f"1 8 {nodes}" in text, text


def test_after_the_end_it_says_so(finished: Path) -> None:
    with watching(finished) as asker:
        page = words(asker.page())
        assert asker.state()["state"] == "finished"
        assert "The run is over: every round is done and the model is saved." in page
        assert asker.state()["title"].startswith(f"over · {finished.parent.name} ·"), "the folder is called run"


def test_a_training_that_was_enough_before_its_last_step_says_so(begun: SyntheticRun) -> None:
    stage = {"stage": "train", "round": 0, "unit": "steps", "done": 8, "total": 114, "seconds": 2.2}
    begun.folder.progress.write_text(json.dumps({"running": [], "done": [stage]}))
    (row,) = live_of(RunReader(begun.folder).read(), seen=Seen()).stages
    assert (row.done, row.share) == ("8 of 8 steps", 1.0)
    assert row.note == "it had its dose; at most 114 steps were planned"


@pytest.mark.parametrize(
    "error, said", [(KeyboardInterrupt("Ctrl-C"), "was stopped (Ctrl-C)"), (ValueError("a"), "ended by an error")]
)
def test_a_run_that_stopped_says_how_and_that_it_can_go_on(
    begun: SyntheticRun, error: BaseException, said: str
) -> None:
    file = ProgressFile(begun.folder.progress)
    with pytest.raises(type(error)), file.kept():
        raise error
    with watching(begun.folder.root) as asker:
        text = words(asker.part("now"))
        assert asker.state()["state"] == "stopped" and f"The run {said}" in text and "goes on where it was" in text


def test_a_driver_that_says_nothing_is_called_silent(begun: SyntheticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.report.live._SILENT_S", 0.3)
    begun.folder.progress.write_text(json.dumps({"running": [{"stage": "train", "unit": "steps", "done": 1}]}))
    lock = lock_folder(begun.folder, say=print)
    try:
        with watching(begun.folder.root) as asker:
            text = eventually(lambda: "has said nothing" in (text := words(asker.part("now"))) and text)
            assert "what stands here is as old as that" in text
    finally:
        lock.release()


def test_watching_changes_nothing_and_needs_no_lock(begun: SyntheticRun) -> None:
    lock = lock_folder(begun.folder, say=print)
    try:
        before = {path: path.stat().st_mtime_ns for path in begun.folder.root.rglob("*") if path != begun.folder.lock}
        with watching(begun.folder.root) as asker:
            look_at_everything(asker)
        after = {path: path.stat().st_mtime_ns for path in begun.folder.root.rglob("*") if path != begun.folder.lock}
        assert after == before
    finally:
        lock.release()


def look_at_everything(asker: Asker) -> None:
    eventually(lambda: not asker.state()["reading"])
    asker.page()
    for number in range(asker.state()["facts"]["trees"]["num"]):
        asker.json("tree", number=number)
    asker.json("pairs")


# ---- pairs by the screenful ----


def test_pairs_come_by_pages_in_the_order_asked_for(finished: Path) -> None:
    with watching(finished) as asker:
        seen: list[tuple[int, int]] = []
        margins: list[float] = []
        total = asker.json("pairs", order="down", num=1)["total"]
        for first in range(0, total, 7):
            found = asker.json("pairs", order="down", first=first, num=7)
            seen += [(pair["place"], pair["row"]) for pair in found["pairs"]]
            margins += [pair["margin"] for pair in found["pairs"]]
        assert len(seen) == len(set(seen)) == total == asker.state()["facts"]["num"]
        assert margins == sorted(margins, reverse=True)
        assert asker.json("pairs", order="up", num=1)["pairs"][0]["margin"] == min(margins)
        first_round = asker.json("pairs", order="round", place=0, num=100)
        assert {pair["where"] for pair in first_round["pairs"]} == {"round 1"}
        assert [pair["row"] for pair in first_round["pairs"]] == list(range(first_round["total"]))


def test_the_typical_pairs_come_first_and_those_cut_off_last(finished: Path) -> None:
    with watching(finished) as asker:
        pairs = asker.json("pairs", order="typical", num=100)["pairs"]
        whole = [pair["whole"] for pair in pairs]
        assert whole[0] and not whole[-1] and whole == sorted(whole, reverse=True)
        ends = [pair[side]["sentences"][-1]["text"] for pair in pairs for side in ("chosen", "rejected")]
        cut = [text for text in ends if not text.endswith(".")]
        assert cut and set(cut) <= {"No", "There is a"}
        margins = sorted(pair["margin"] for pair in pairs)
        middle = margins[len(margins) // 2]
        near = [abs(pair["margin"] - middle) for pair in pairs if pair["whole"]]
        assert sum(near[:5]) < sum(near[-5:])


def test_pairs_are_searched_and_filtered(finished: Path) -> None:
    with watching(finished) as asker:
        found = asker.json("pairs", text="NAVY bolt", num=100)
        assert found["total"] == len(found["pairs"])
        assert all("navy bolt" in json.dumps(pair) for pair in found["pairs"])
        (one,) = asker.json("pairs", text="p000017", num=100)["pairs"]
        assert one["id"] == "p000017" and asker.json("tree", number=one["tree"])["id"] == "p000017"
        low, high = asker.state()["facts"]["ends"]
        some = asker.json("pairs", low=low + 5, high=high - 5, num=100)
        assert 0 < some["total"] < asker.state()["facts"]["num"]
        assert all(low + 5 <= pair["margin"] <= high - 5 for pair in some["pairs"])
        assert asker.json("pairs", text="nobody says this")["total"] == 0


def test_no_more_than_a_screenful_is_sent_at_once(finished: Path) -> None:
    with watching(finished) as asker:
        assert len(asker.json("pairs", num=999_999)["pairs"]) <= 100


# ---- the command itself ----


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_the_command_prints_its_url_and_ends_without_an_error(tmp_path: Path, ended_by: signal.Signals) -> None:
    command = [sys.executable, "-u", "-m", "csr_ray", "watch", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert "is not there yet; the page waits for it" in process.stdout.readline()
        url = urlsplit(process.stdout.readline().strip())
        assert url.hostname == "127.0.0.1" and re.fullmatch(r"/[\w-]{32}/", url.path)
        process.send_signal(ended_by)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_bad_usage(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with watching(finished) as asker:
        port = asker.server.server_address[1]
        assert main(["watch", str(finished), "--port", str(port)]) == 2
    assert f"--port = {port}: Address already in use" in capsys.readouterr().err


def test_a_file_is_no_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(finished / "config.yaml")]) == 2
    assert "it is a file; name the folder that run.dir names" in capsys.readouterr().err


def test_open_shows_the_page_in_the_browser(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: shown.append(url) or True)
    monkeypatch.setattr("csr_ray.app.watch_server.WatchServer.serve_forever", lambda self, **_: None)
    assert main(["watch", str(finished)]) == 0 and shown == []
    assert main(["watch", str(finished), "--open"]) == 0
    assert len(shown) == 1 and shown[0].startswith("http://127.0.0.1:")
