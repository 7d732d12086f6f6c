"""A head that wants a token: whoever comes without the right one is told so at once, in one line."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import ROOT, Head

TOKEN = secrets.token_hex(16)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    made = Head(num_cpus=0, environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
    yield made
    made.close()


def joined(head: Head, *, home: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A dry run, which joins the cluster to see its nodes, and how long it took in seconds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    started_s = time.monotonic()
    layout = ["configs/tiny-world.yaml", "cluster.layout=auto", f"run.dir={home / 'run'}", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-m", "csr_ray", "run", *layout],
        cwd=ROOT,
        env={**kept, "HOME": str(home), "RAY_ADDRESS": head.address, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, time.monotonic() - started_s


REMEDY = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE = 'disabled': the cluster at {head} wants a token; "),
        ({}, "RAY_AUTH_MODE is not set: the cluster at {head} wants a token; "),
        ({"RAY_AUTH_TOKEN": TOKEN}, "RAY_AUTH_MODE is not set: the cluster at {head} wants a token; "),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "not-the-token"},
            "RAY_AUTH_TOKEN: the cluster at {head} wants another token; ",
        ),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "{home}/token"},
            "RAY_AUTH_TOKEN_PATH: the cluster at {head} wants another token; ",
        ),
        ({"RAY_AUTH_MODE": "token"}, "~/.ray/auth_token: there is none, "),
    ],
    ids=["disabled", "unset", "unset beside a token", "wrong", "wrong in a file", "missing"],
)
def test_who_does_not_bring_the_token_is_told_so_at_once(
    head: Head, tmp_path: Path, environment: dict[str, str], says: str
) -> None:
    (tmp_path / "token").write_text("not-the-token")
    environment = {name: value.format(home=tmp_path) for name, value in environment.items()}
    done, took_s = joined(head, home=tmp_path, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"csr-ray: {says.format(head=head.address)}") and done.stderr.count("\n") == 1
    assert REMEDY in done.stderr and "not-the-token" not in done.stderr
    assert took_s < 15, "Ray itself tries for 20 s"


def test_who_brings_it_comes_in(head: Head, tmp_path: Path) -> None:
    done, _ = joined(head, home=tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0 and "on this cluster (no GPU)" in done.stdout, done.stderr
