"""A real headless Chromium, driven by its own protocol (CDP) over two pipes, so that no further package is needed."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
WAIT_S = 60.0
# Chromium reads commands from the one and writes answers to the other.
_ITS_INPUT, _ITS_OUTPUT = 3, 4
_KEYS = {"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), "ArrowLeft": ("ArrowLeft", 37, "")}
_KEYS |= {
    name: (name, number, "")
    for name, number in (("ArrowRight", 39), ("ArrowUp", 38), ("ArrowDown", 40), ("Home", 36), ("End", 35))
}
_KEYS |= {"Escape": ("Escape", 27, ""), " ": ("Space", 32, " ")}
_SHIFT = 8


class BrowserError(Exception):
    """The browser refused a command, or is gone."""


def find_chromium() -> str | None:
    """Where it is on this machine; None if it is nowhere."""
    return next((found for program in PROGRAMS if (found := shutil.which(program))), None)


class HeadlessBrowser:
    """One window with one page. `complaints` are errors in its console, refusals of its policy included."""

    def __init__(self, program: str, *, profile: Path) -> None:
        self.complaints: list[str] = []
        self._number, self._rest, self._session = 0, b"", ""
        commands_out, self._commands = _pipe()
        self._answers, answers_in = _pipe()
        argv = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        nothing = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
        self.pid = os.posix_spawn(
            program,
            argv,
            os.environ,
            file_actions=[
                nothing,
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, commands_out, _ITS_INPUT),
                (os.POSIX_SPAWN_DUP2, answers_in, _ITS_OUTPUT),
            ],
            setpgroup=0,
        )
        os.close(commands_out)
        os.close(answers_in)
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(BrowserError, OSError):
            self._session = ""
            self.command("Browser.close")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # its own group, which nobody else is in
        os.waitpid(self.pid, 0)
        os.close(self._commands)
        os.close(self._answers)

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result.

        Raises:
            BrowserError: it is refused, or there is no answer.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until_s = time.monotonic() + WAIT_S
        while True:
            answer = self._next(until_s)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._hear(answer)

    def open(self, url: str, *, until: str) -> None:
        """Go there, and wait until `until` is true in the page."""
        self.command("Page.navigate", url=url)
        self.wait_for(until)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page, as a plain value."""
        found = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true, also across a change of pages."""
        self._wait(lambda: bool(self.value(expression)), what=expression)

    def press(self, key: str, *, is_held: bool = False, with_shift: bool = False) -> None:
        """Press a key and let it go.

        Args:
            is_held: the key is held down, so the browser repeats it.
        """
        code, number, text = _KEYS.get(key) or (
            f"Digit{key}" if key.isdecimal() else f"Key{key.upper()}",
            ord(key.upper()),
            key,
        )
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": _SHIFT * with_shift}
        down = {"type": "keyDown" if text else "rawKeyDown", **common, **({"text": text} if text else {})}
        self.command("Input.dispatchKeyEvent", **down, autoRepeat=is_held)
        self.command("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.command("Input.insertText", text=text)

    def resize(self, *, width: int, height: int) -> None:
        """Give the window this size."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def prefer(self, **features: str) -> None:
        """Let the page believe that its reader prefers this, such as prefers_color_scheme="dark"."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", features=wanted)

    def screenshot(self, *, width: int, height: int) -> bytes:
        """The page as PNG, in a window of this size."""
        self.resize(width=width, height=height)
        return base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"])

    def _wait(self, is_so: Callable[[], bool], *, what: str) -> None:
        until_s = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(BrowserError):  # the page is just being changed
                if is_so():
                    return
            if time.monotonic() > until_s:
                raise BrowserError(f"not so after {WAIT_S:.0f} s: {what}")
            time.sleep(0.05)

    def _next(self, until_s: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until_s - time.monotonic()))
            data = os.read(self._answers, 1 << 16) if ready else b""
            if not data:
                raise BrowserError("the browser says nothing any more")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _hear(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry'].get('url', '')}: {params['entry']['text']}")


@contextlib.contextmanager
def chromium(program: str, *, profile: Path) -> Iterator[HeadlessBrowser]:
    browser = HeadlessBrowser(program, profile=profile)
    try:
        yield browser
    finally:
        browser.close()


def _pipe() -> tuple[int, int]:
    """A pipe whose ends have other numbers than those that the browser is to have."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
