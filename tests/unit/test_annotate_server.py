"""The page of csr-ray annotate over real HTTP: who may ask, what is kept, and what everybody sees next."""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pyarrow.parquet as pq
import pytest
from annotated_runs import serving, write_run
from PIL import Image
from rich.console import Console

from csr_ray.annotation.verdicts import Annotations, person_of
from csr_ray.app.annotate import Asked, annotate, export
from csr_ray.app.annotate_server import MAX_BODY_BYTES, AnnotationServer
from csr_ray.app.local_server import is_own_host, is_own_page
from csr_ray.methods.illume import read_accepted
from csr_ray.store.lock import lock_folder
from csr_ray.store.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
ATTACK = "<script>alert('x')</script>\" onmouseover=\"alert(1)"


@dataclass
class Browser:
    """What a browser sends, without one. `headers` are sent with every request, over what would be sent otherwise."""

    port: int
    token: str
    headers: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, *, token: str | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
        return self._ask("GET", path, token=token, headers=headers)

    def post(self, path: str, *, token: str | None = None, **fields: str) -> tuple[int, str, dict[str, str]]:
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{self.port}"}
        return self._ask("POST", path, token=token, headers=headers, body=urlencode(fields))

    def judge(self, name: str, verdict: str) -> str:
        """Give a verdict on what the page of this person shows, and return the next page."""
        found = re.search(r'name="item" value="(\d+)"', self.get(f"?name={name}")[1])
        assert found, "nothing is left to judge"
        status, _, headers = self.post(f"verdict?name={name}", item=found[1], verdict=verdict)
        assert (status, headers["Location"]) == (303, f"./?name={name}")
        return self.get(f"?name={name}")[1]

    def _ask(
        self, method: str, path: str, *, token: str | None, headers: dict[str, str], body: str | None = None
    ) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            url = f"/{self.token if token is None else token}/{path}"
            connection.request(method, url, body=body, headers={**headers, **self.headers})
            reply = connection.getresponse()
            return reply.status, reply.read().decode("utf-8", "surrogateescape"), dict(reply.headers)
        finally:
            connection.close()


@contextmanager
def browsing(run: Path, **asked: object) -> Iterator[Browser]:
    with serving(run, **asked) as server:
        yield Browser(port=server.server_address[1], token=server.token)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


# ---- who may ask ----


def test_the_page_listens_on_this_machine_only(run: Path) -> None:
    with serving(run) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert urlsplit(server.url).hostname == "127.0.0.1" and len(server.token) >= 32


def test_every_start_has_a_token_of_its_own(run: Path) -> None:
    with serving(run) as first, serving(run) as second:
        assert first.token != second.token


def test_a_request_without_the_token_is_refused(run: Path) -> None:
    with browsing(run) as browser:
        for path in ("", "?name=ada", "style.css", "script.js", "picture/0", "nothing"):
            for token in ("", "x", "annotate", "..", "%2e%2e", browser.token[:-1], browser.token + "x"):
                status, words, _ = browser.get(path, token=token)
                assert status == 403 and "token" in words and "circle" not in words, (path, token)


def test_a_verdict_without_the_token_is_refused(run: Path) -> None:
    with browsing(run) as browser:
        assert browser.post("verdict?name=ada", token="guess", item="0", verdict="left")[0] == 403
        assert not (run / "annotations").exists()


def test_a_request_under_another_name_is_refused(run: Path) -> None:
    with browsing(run) as browser:
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "0.0.0.0", "[::1]", ""]:
            browser.headers = {"Host": host}
            assert browser.get("")[0] == 403
            assert browser.post("verdict?name=ada", item="0", verdict="left")[0] == 403
        assert not (run / "annotations").exists()


def test_a_tunnel_may_end_at_any_port(run: Path) -> None:
    with browsing(run) as browser:
        for host in ("127.0.0.1", "localhost", "127.0.0.1:8080", "localhost:1"):
            assert browser.get("", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", [None, "", "a", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:80 ", "127.0.0.1:80\n", "127.0.0.12"]
)
def test_hosts_that_are_not_this_machine(host: str | None) -> None:
    assert not is_own_host(host)


@pytest.mark.parametrize(
    "origin, site",
    [
        (None, None),
        ("null", None),
        ("http://evil.example", None),
        ("https://127.0.0.1:80", None),
        ("http://127.0.0.1:81", None),
        ("http://localhost:80", None),
        ("http://127.0.0.1:80", "cross-site"),
        ("http://127.0.0.1:80", "same-site"),
        ("http://127.0.0.1:80", "none"),
    ],
)
def test_pages_that_are_not_ours(origin: str | None, site: str | None) -> None:
    assert not is_own_page(origin, host="127.0.0.1:80", fetch_site=site)
    assert is_own_page("http://127.0.0.1:80", host="127.0.0.1:80", fetch_site="same-origin")


def test_a_verdict_that_another_page_sends_is_refused(run: Path) -> None:
    with browsing(run) as browser:
        for origin in ("http://evil.example", "null", ""):
            browser.headers = {"Origin": origin}
            assert browser.post("verdict?name=ada", item="0", verdict="left")[0] == 403
            assert browser.post("undo?name=ada")[0] == 403
        assert not (run / "annotations").exists()


def test_no_path_leads_to_a_file(run: Path) -> None:
    paths = (
        "picture/../../run/config.yaml",
        "picture/..%2f..%2fconfig.yaml",
        "picture//etc/passwd",
        "picture/%2fetc%2fpasswd",
        "picture/-1",
        "picture/4",
        "picture/99999999999",
        "picture/%D9%A3",
        "picture/0/../1",
        "../annotations/ada.jsonl",
        "config.yaml",
        "annotate.html.j2",
    )
    with browsing(run) as browser:
        for path in paths:
            status, words, _ = browser.get(path)
            assert status == 404 and words == "There is nothing here.\n", path


def test_a_name_cannot_lead_out_of_the_folder(run: Path) -> None:
    with browsing(run) as browser:
        for name in ("../../escaped", "a/b", "..", "%00", "\0", "a" * 41, ATTACK):
            path = urlencode({"name": name})
            status, words, _ = browser.get(f"?{path}")
            assert status == 200 and "cannot be a name" in words and "<script>a" not in words
            assert browser.post(f"verdict?{path}", item="0", verdict="left")[0] == 400
            assert browser.post(f"undo?{path}")[0] == 400
    assert sorted(path.name for path in run.parent.rglob("*.jsonl")) == ["journal.jsonl"]


def test_a_picture_is_pixels_that_were_drawn_anew_and_no_other_file_can_be_one(run: Path) -> None:
    with browsing(run) as browser:
        status, content, headers = browser.get("picture/0")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        with Image.open(io.BytesIO(content.encode("utf-8", "surrogateescape"))) as image:
            assert image.size == (40, 30) and not image.info
    for image in (run.parent / "images").iterdir():
        image.unlink()
        image.symlink_to(run / "config.yaml")
    with browsing(run) as browser:
        assert browser.get("picture/0")[0] == 404
        assert "The picture cannot be read" in browser.get("?name=ada")[1]


def test_a_picture_of_the_web_is_not_fetched_unless_the_run_might(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("csr_ray.report.pictures.load_image", lambda path: asked.append(path))
    path = run / "round_000" / "pairs.parquet"
    table = pq.read_table(path)
    rows = [{**row, "image": {"bytes": None, "path": "https://example.org/a.png"}} for row in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    with browsing(run) as browser:
        assert browser.get("picture/0")[0] == 404
    assert asked == []


def test_a_picture_that_only_the_pairs_hold_is_shown(run: Path) -> None:
    path = run / "round_000" / "pairs.parquet"
    table = pq.read_table(path)
    rows = []
    for row in table.to_pylist():
        content = Path(row["image"]["path"]).read_bytes()
        rows.append({**row, "image": {"bytes": content, "path": f"s3x/{row['id']}.png"}})
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    with browsing(run) as browser:
        assert [browser.get(f"picture/{number}")[0] for number in range(5)] == [200, 200, 200, 200, 404]


def test_every_answer_forbids_what_the_page_does_not_need(run: Path) -> None:
    with browsing(run) as browser:
        for path in ("", "?name=ada", "style.css", "script.js", "picture/0", "nothing"):
            headers = browser.get(path)[2]
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
            # With no-referrer a browser would send "Origin: null" with the page's own forms.
            assert headers["Referrer-Policy"] == "same-origin"


def test_the_page_names_nothing_outside(run: Path) -> None:
    with browsing(run) as browser:
        for path in ("", "?name=ada", "style.css", "script.js"):
            assert re.search(r"(?:https?:)?//(?!\s)[\w.]+\.\w", browser.get(path)[1].replace("// ", "")) is None, path


def test_a_body_that_is_too_long_or_of_unknown_length_is_refused(run: Path) -> None:
    with browsing(run) as browser:
        assert browser.post("verdict?name=ada", item="0", verdict="x" * MAX_BODY_BYTES)[0] == 413
        browser.headers = {"Transfer-Encoding": "chunked"}
        assert browser.post("verdict?name=ada", item="0", verdict="left")[0] == 411


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def elements(html: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = _Elements()
    parser.feed(html)
    return parser.found


def test_no_text_of_the_run_becomes_an_element_or_an_attribute(run: Path, tmp_path: Path) -> None:
    attacked = write_run(tmp_path / ATTACK.replace("/", "") / "run", question=ATTACK, words=ATTACK)
    with browsing(run) as plain, browsing(attacked) as evil:
        assert ATTACK not in evil.get("?name=ada")[1]
        assert elements(evil.get("?name=ada")[1]) == elements(plain.get("?name=ada")[1])


# ---- what is kept, and what is seen ----


def test_a_verdict_is_on_disk_when_the_answer_comes(run: Path) -> None:
    with browsing(run) as browser:
        page = browser.judge("ada", "left")
        (line,) = (run / "annotations" / "ada.jsonl").read_text().splitlines()
        assert json.loads(line)["verdict"] == "left"
        assert "1 of 4 judged" in page and "left is better" in page


def test_left_is_what_stood_on_the_left(run: Path) -> None:
    with browsing(run) as browser:
        for name in ("ada", "bob", "cy", "dee"):
            page = browser.get(f"?name={name}")[1]
            is_first_left = page.index("red circle") < page.index("blue dog")
            browser.judge(name, "left")
            line = json.loads((run / "annotations" / f"{name}.jsonl").read_text())
            assert line["left_nodes"] == ([0, 1] if is_first_left else [2, 3])


def test_the_time_that_a_verdict_took_is_kept_if_it_can_be_known(run: Path) -> None:
    with browsing(run) as browser:
        for number, (sent, is_known) in enumerate([("1.0", False), ("nan", False), ("x", False), (None, True)]):
            page = browser.get("?name=ada")[1]
            at = re.search(r'name="sent" value="([\d.]+)"', page)
            assert at
            browser.post("verdict?name=ada", item=str(number), verdict="tie", sent=sent or at[1])
            line = json.loads((run / "annotations" / "ada.jsonl").read_text().splitlines()[-1])
            assert (line["seconds"] is not None) == is_known
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"])


def test_a_session_goes_on_where_the_person_was(run: Path) -> None:
    with browsing(run) as browser:
        browser.judge("ada", "left")
        browser.judge("ada", "skip")
        before = browser.get("?name=ada")[1]
    with browsing(run) as browser:
        page = browser.get("?name=Ada")[1]
        assert "2 of 4 judged" in page
        assert re.findall(r"round 1 · (p\d)", page) == re.findall(r"round 1 · (p\d)", before)


def test_it_goes_on_behind_a_line_that_was_torn(run: Path) -> None:
    with browsing(run) as browser:
        browser.judge("ada", "left")
    path = run / "annotations" / "ada.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "p2", "rou')
    with browsing(run) as browser:
        assert "1 of 4 judged" in browser.get("?name=ada")[1]
        assert "2 of 4 judged" in browser.judge("ada", "right")


def test_undo_shows_the_item_again_and_is_a_line_of_its_own(run: Path) -> None:
    with browsing(run) as browser:
        first = re.search(r"round 1 · (p\d)", browser.get("?name=ada")[1])
        browser.judge("ada", "left")
        assert browser.post("undo?name=ada")[0] == 303
        page = browser.get("?name=ada")[1]
        again = re.search(r"round 1 · (p\d)", page)
        assert first and again and again[1] == first[1] and "0 of 4 judged" in page
        assert browser.post("undo?name=ada")[0] == 303, "nothing to take back is no error"
        lines = [json.loads(line) for line in (run / "annotations" / "ada.jsonl").read_text().splitlines()]
        assert [line["verdict"] for line in lines] == ["left", "undo"]


def test_undo_goes_back_step_by_step_also_after_the_end(run: Path) -> None:
    with browsing(run) as browser:
        for _ in range(4):
            page = browser.judge("ada", "tie")
        assert "All 4 are judged" in page
        for left in (3, 2, 1, 0):
            browser.post("undo?name=ada")
            assert f"{left} of 4 judged" in browser.get("?name=ada")[1]


def test_pressing_twice_is_one_verdict(run: Path) -> None:
    with browsing(run) as browser:
        for _ in range(3):
            assert browser.post("verdict?name=ada", item="0", verdict="left")[0] == 303
        assert len((run / "annotations" / "ada.jsonl").read_text().splitlines()) == 1
        assert "1 of 4 judged" in browser.get("?name=ada")[1]


@pytest.mark.parametrize("first, words", [("left", "left is better"), ("tie", "a tie"), ("skip", "skipped")])
def test_another_verdict_of_a_second_tab_is_not_kept_and_the_page_says_so(run: Path, first: str, words: str) -> None:
    with browsing(run) as browser:
        found = re.search(r"round 1 · (p\d)", browser.get("?name=ada")[1])
        assert found
        browser.post("verdict?name=ada", item="0", verdict=first)
        status, page, _ = browser.post("verdict?name=ada", item="0", verdict="right")
        assert status == 409 and 'role="alert"' in page and "1 of 4 judged" in page
        assert (
            f"{found[1]} was judged already: {words}. That stays; to change it, undo until {found[1]} comes" in page
        )
        assert [json.loads(line)["verdict"] for line in (run / "annotations" / "ada.jsonl").open()] == [first]
        browser.post("undo?name=ada")
        assert browser.post("verdict?name=ada", item="0", verdict="right")[0] == 303


def test_what_is_no_verdict_is_refused(run: Path) -> None:
    refused: list[tuple[dict[str, str], int]] = [
        ({"item": "4", "verdict": "left"}, 404),
        ({"item": "-1", "verdict": "left"}, 400),
        ({"item": "x", "verdict": "left"}, 400),
        ({"item": "0", "verdict": "best"}, 400),
        ({"item": "0", "verdict": "undo"}, 400),
        ({"verdict": "left"}, 400),
        ({}, 400),
        ({str(number): "x" for number in range(50)}, 400),
    ]
    with browsing(run) as browser:
        for fields, status in refused:
            assert browser.post("verdict?name=ada", **fields)[0] == status, fields
        assert not (run / "annotations").exists()


def test_two_people_judge_the_same_items_and_see_how_far_they_agree(run: Path) -> None:
    with browsing(run) as browser:
        items = re.findall(r"round 1 · (p\d)", browser.get("?name=ada")[1] + browser.get("?name=bob")[1])
        assert items[0] == items[1]
        for _ in range(3):
            browser.judge("ada", "tie")
        for verdict in ("tie", "tie", "skip"):
            page = browser.judge("bob", verdict)
        found = re.search(r"ada and bob</th><td>(\d+)</td><td>([^<]+)</td><td>([^<]+)</td>", page)
        assert found and found.groups()[0] == "2" and "100 %" in found[2]
        assert browser.get("")[1].count('href="./?name=') == 2, "the first screen lists who has begun"


def test_people_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_prompts=8)
    with browsing(run) as browser:
        people = ["ada", "bob", "cy", "dee"]
        threads = [
            threading.Thread(target=lambda name=name: [browser.judge(name, "left") for _ in range(8)])
            for name in people
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = Annotations(run / "annotations")
    assert {name: len(verdicts) for name, verdicts in found.by_person().items()} == dict.fromkeys(people, 8)
    assert found.num_bad_lines == 0


def test_a_verdict_that_cannot_be_kept_is_said_and_asked_for_again(run: Path) -> None:
    (run / "annotations").write_text("a file stands here")
    with browsing(run) as browser:
        status, page, _ = browser.post("verdict?name=ada", item="0", verdict="left")
        assert status == 500 and "Not kept: cannot write" in page and "0 of 4 judged" in page


def test_scores_can_be_kept_from_people(run: Path) -> None:
    with browsing(run, shows_scores=False) as browser:
        page = browser.get("?name=ada")[1]
        assert "blue dog" in page and "score" not in page and "sentence c" not in page
    with browsing(run) as browser:
        assert "image score 32.0" in browser.get("?name=ada")[1]


def test_answers_of_candidates_can_be_judged_while_the_run_goes_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", has_pairs=False)
    lock = lock_folder(RunFolder(run), say=print)
    try:
        with browsing(run, from_candidates=True) as browser:
            assert "1 of 4 judged" in browser.judge("ada", "right")
    finally:
        lock.release()


def test_a_page_can_be_used_by_keyboard_and_by_a_screen_reader(run: Path) -> None:
    with browsing(run) as browser:
        browser.judge("ada", "left")
        page = browser.get("?name=ada")[1]
    assert '<html lang="en">' in page and page.count("<h1") == 1 and page.count("<main") == 1
    assert page.count("<h2") == 2 and "<title>2 of 4" in page
    # Every choice is a button with words in it; the key is beside them.
    choices = re.findall(r"<button[^>]*data-key=\"(\w)\"[^>]*><kbd>(\w)</kbd> (\w[^<]+)</button>", page)
    assert {key for key, shown, _ in choices if key == shown} == set("123suc") and len(choices) == 6
    assert page.index("Left is better") < page.index("Tie</button>") < page.index("Right is better")
    assert 'role="status"' in page and 'aria-describedby="last"' in page
    assert all("alt=" in image for image in re.findall(r"<img[^>]*>", page))
    assert page.count('<label for="done">') == 1


# ---- the command itself ----


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_at_the_end_the_pairs_are_written_and_printed(run: Path, ended_by: signal.Signals) -> None:
    command = [sys.executable, "-u", "-m", "csr_ray", "annotate", str(run), "--limit", "3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        url = urlsplit(process.stdout.readline().strip())
        assert "3 of 4 items of round 1 (pairs)" in first
        assert url.port is not None
        browser = Browser(port=url.port, token=url.path.strip("/"))
        for _ in range(3):
            browser.judge("ada", "left")
        process.send_signal(ended_by)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "pairs, by the majority 3" in " ".join(rest.split())
    assert pq.read_table(run / "annotations" / "pairs.parquet").num_rows == 3
    assert "Traceback" not in rest


def test_a_session_without_a_verdict_leaves_nothing(run: Path) -> None:
    before = sorted(run.rglob("*"))
    with browsing(run) as browser:
        browser.get("?name=ada")
    assert sorted(run.rglob("*")) == before


# ---- single answers ----


def test_single_answers_are_accepted_or_refused_and_become_the_rows_that_illume_reads(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_rounds=2)
    (run / "round_001" / "pairs.parquet").unlink()
    with browsing(run, from_answers=True) as browser:
        assert "Is the answer to be accepted?" in browser.get("")[1]
        said = {}
        for verdict in ("left", "right", "skip", "left"):
            page = browser.get("?name=ada")[1]
            assert "1</kbd> Accept" in page and "2</kbd> Refuse" in page and "Tie" not in page
            assert page.count('<section class="answer"') == 1 and "The answer</h2>" in page
            (id,) = re.findall(r"round 2 · (p\d)", page)
            said[id, "red circle" in page] = verdict
            after = browser.judge("ada", verdict)
        assert "4 of 8 judged" in after and ": accepted. Undo takes it back." in after
        number = re.search(r'name="item" value="(\d+)"', browser.get("?name=ada")[1])
        assert number
        status, page, _ = browser.post("verdict?name=ada", item=str(int(number[1]) - 1), verdict="right")
        assert status == 409 and "was judged already: accepted." in page
    output = run / "annotations" / "accepted.jsonl"
    console = Console(record=True, width=200, file=io.StringIO())
    export(str(run), output=output, of_answers=True, console=console)
    shown = " ".join(console.export_text().split())
    assert "accepted, by the majority 2" in shown and "refused 1" in shown and "left out: only skipped 1" in shown
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(row["id"], "red circle" in row["text"]): row["accepted"] for row in rows} == {
        key: verdict == "left" for key, verdict in said.items() if verdict != "skip"
    }
    assert all(row["policy_version"] == 0 and row["annotators"] == ["ada"] for row in rows)
    found = read_accepted(str(output))
    assert {key: one.is_accepted for key, one in found.items()} == {
        (row["id"], row["text"]): row["accepted"] for row in rows
    }
    assert Annotations(run / "annotations").by_person() == {}, "they are no verdicts on pairs"
    assert person_of("accepted") is None, "whose file would be that of the answers"


def test_accepted_answers_that_are_all_taken_back_are_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with browsing(run, from_answers=True) as browser:
        browser.judge("ada", "left")
    output = run / "annotations" / "accepted.jsonl"
    monkeypatch.setattr(AnnotationServer, "serve_forever", lambda self, **_: None)
    annotate(str(run), asked=Asked(from_answers=True), console=Console(quiet=True))
    assert len(output.read_text().splitlines()) == 1
    monkeypatch.undo()
    with browsing(run, from_answers=True) as browser:
        browser.post("undo?name=ada")
    monkeypatch.setattr(AnnotationServer, "serve_forever", lambda self, **_: None)
    annotate(str(run), asked=Asked(from_answers=True), console=Console(quiet=True))
    assert output.read_bytes() == b"" and read_accepted(str(output)) == {}
