"""The tutorial as a reader follows it: its commands in a shell, its scripts and configs as files, in one folder."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from documented_commands import ROOT, blocks
from PIL import Image, ImageDraw

PAGES = ROOT / "docs" / "tutorial"
CONFIG = ROOT / "configs" / "tiny-world.yaml"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Somebody who types what a page says, in `folder`, with a cache of their own.

    Attributes:
        environment: further variables of the shell.
    """

    folder: Path
    environment: dict[str, str]

    def types(self, page: str, *, with_words: str, timeout_s: float = 600) -> str:
        """Type the block of a page that has these words, and return what the commands say.

        Raises:
            AssertionError: there is no such block, or a command of it fails.
        """
        script = block(page, language="bash", with_words=with_words)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self._shell(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def opens(self, page: str, *, with_words: str) -> str:
        """Type a command that serves a page, open its address, then press Ctrl-C; returns what was shown.

        Raises:
            AssertionError: there is no such block, no page, or the command does not end well.
        """
        script = block(page, language="bash", with_words=with_words)
        # It is the shell's last command, and so is what Ctrl-C ends, as at a terminal.
        command = ["bash", "-euo", "pipefail", "-c", f"exec {script}"]
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self._shell(), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            said = ""
            while (address := re.search(r"http://127\.0\.0\.1:\d+/\S*", said)) is None:
                line = process.stdout.readline()
                assert line, f"{script}\n{said}"
                said += line
            with urllib.request.urlopen(address[0], timeout=60) as answer:
                shown: str = answer.read().decode("utf-8")
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in rest, f"{script}\n{said}{rest}"
        return shown

    def _shell(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CSR_RAY_CACHE": str(self.folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            **self.environment,
        }

    def saves(self, page: str, *, language: str, name: str) -> Path:
        """Save the page's block in this language under a name."""
        path = self.folder / name
        path.write_text(block(page, language=language), encoding="utf-8")
        return path


def block(page: str, *, language: str, with_words: str = "") -> str:
    """The block of a page of the tutorial in this language that has these words; several may say the same."""
    found = [text for kind, text in blocks(PAGES / f"{page}.md") if kind == language and with_words in text]
    assert len(set(found)) == 1, (page, language, with_words, len(found))
    return found[0]


def take_photos(folder: Path, *, num: int) -> None:
    """Photos of several sizes and one file that is none, though it is called so."""
    folder.mkdir()
    draw = random.Random(18)
    for index in range(num):
        colour = tuple(draw.randrange(256) for _ in range(3))
        photo = Image.new("RGB", (draw.randrange(120, 400), draw.randrange(120, 300)), colour)
        ImageDraw.Draw(photo).ellipse((20, 20, 90, 90), fill=tuple(draw.randrange(256) for _ in range(3)))
        photo.save(folder / f"IMG_{index + 1}.jpg")
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "notes.txt").write_text("no photo either")
