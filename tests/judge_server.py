"""A real process that speaks as OpenAI's endpoint does, and has the troubles that it is told to have.

Started as a script it prints its port and serves until it is ended. What is to happen to the next requests is put at
`/control`, and what was asked is read there.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODELS = ("tiny-judge", "other-judge", "policy")
KEY = "sk-tHe-ReaL-kEy-0123456789"


@dataclass
class _State:
    plan: list[str]
    say: str
    asked: list[dict[str, Any]]
    key: str
    most_at_once: int = 0
    at_once: int = 0


class _Handler(BaseHTTPRequestHandler):
    state: _State
    lock = threading.Lock()
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _give(self, status: int, body: object, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "text/html" if isinstance(body, bytes) and body.startswith(b"<") else "application/json"
        self.send_header("Content-Type", headers.pop("content_type", kind))
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/control":
            self._give(200, {"asked": self.state.asked, "most_at_once": self.state.most_at_once})
        elif self.path == "/v1/models":
            self._give(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})
        else:
            self._give(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/control":
            self.state.plan, self.state.say, self.state.key = body["plan"], body["say"], body["key"]
            self.state.asked, self.state.most_at_once = [], 0
            self._give(200, {})
            return
        if self.path != "/v1/chat/completions":
            self._give(404, {"detail": "Not Found"})
            return
        with self.lock:
            self.state.asked.append({"at_s": time.monotonic(), **body})
            step = self.state.plan.pop(0) if self.state.plan else ""
            self.state.at_once += 1
            self.state.most_at_once = max(self.state.most_at_once, self.state.at_once)
        try:
            self._answer(step, body)
        finally:
            with self.lock:
                self.state.at_once -= 1

    def _answer(self, step: str, body: dict[str, Any]) -> None:
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.state.key and sent != self.state.key:
            said = f"Incorrect API key provided: {sent}."
            self._give(401, {"error": {"message": said, "code": "invalid_api_key"}})
        elif body["model"] not in MODELS:
            said = f"The model `{body['model']}` does not exist."
            self._give(404, {"error": {"message": said, "type": "NotFoundError", "param": "model", "code": 404}})
        elif step.startswith("slow "):
            time.sleep(float(step.split()[1]))
            self._say(self.state.say)
        elif step.startswith("429"):
            wait = {"Retry_After": step.split()[1]} if " " in step else {}
            self._give(429, {"error": {"message": "too many", "code": "rate_limit_exceeded"}}, **wait)
        elif step == "quota":
            self._give(429, {"error": {"message": "pay first", "code": "insufficient_quota"}})
        elif step.startswith("policy "):  # a status whose words name the model
            said = f"Refused: a violation of the policy of {body['model']}."
            self._give(int(step.split()[1]), {"error": {"message": said, "code": "content_policy_violation"}})
        elif step == "400 model":
            self._give(400, {"error": {"message": "it is not served here", "param": "model"}})
        elif step == "max_completion_tokens":
            if "max_tokens" in body:
                said = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
                self._give(400, {"error": {"message": said, "param": "max_tokens"}})
            else:
                self._say(self.state.say)
        elif step.isdigit():
            self._give(int(step), {"error": {"message": f"trouble {step}"}})
        elif step == "html":
            self._give(200, b"<html>welcome</html>")
        elif step == "torn":
            self._give(200, b'{"choices": [{"mess')
        elif step == "empty":
            self._give(200, {})
        elif step == "drop":
            self.close_connection = True
            self.connection.close()
        else:
            self._say(step.removeprefix("say ") if step else self.state.say)

    def _say(self, text: str) -> None:
        message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny-judge-2026", "usage": usage}
        self._give(200, {**answer, "choices": [message]})


@dataclass(frozen=True)
class JudgeServer:
    """The process, as a test sees it.

    Attributes:
        origin: http://127.0.0.1:PORT; the endpoint is at /v1.
    """

    origin: str

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    def plan(self, *steps: str, say: str = "fine", key: str = "") -> None:
        """What happens to the next requests, one step each; those after them are answered with `say`."""
        data = json.dumps({"plan": steps, "say": say, "key": key}).encode()
        request = urllib.request.Request(f"{self.origin}/control", data=data)
        urllib.request.urlopen(request, timeout=10).read()

    def asked(self) -> list[dict[str, Any]]:
        """The bodies of the requests since the plan was made, each with the time that it came (`at_s`)."""
        return self._seen()["asked"]

    def most_at_once(self) -> int:
        return self._seen()["most_at_once"]

    def _seen(self) -> dict[str, Any]:
        return json.loads(urllib.request.urlopen(f"{self.origin}/control", timeout=10).read())


@contextlib.contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """A server in a process of its own."""
    command: Sequence[str] = [sys.executable, str(Path(__file__).resolve())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield JudgeServer(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    _Handler.state = _State(plan=[], say="fine", asked=[], key="")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
