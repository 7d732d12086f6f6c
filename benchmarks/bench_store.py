"""What does a run folder at a URL cost the driver, and how fast is it sent and brought back?

Units of candidates are committed, each a file of 32 KiB and a line of the journal, once into a local folder and once
into a run folder on S3 (a moto server in a process of its own, on this machine), A B A B. What the stages wait for
is the same in both: the file and the line in the working copy. Sending goes on beside it. A commit follows the one
before after --pause-ms (20: 800 prompts a second, more than a driver gets); 0 shows what it can send at most.

    commit_us_folder, commit_us_url    a commit, as the driver waits for it: median, microseconds
    url_vs_folder                      the second over the first
    requests_a_unit                    what the store is asked for a unit, joining included
    units_sent_per_s                   from the first commit until everything is at the URL
    brought_back_s                     a start on a machine without a copy: units and journal fetched and compared

The server answers in milliseconds and shares this machine's cores; a real store is further away, and wider.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from result_file import add_json_flag, told_in_a_line, versions_of, write_result

from csr_ray.app.place import folder_of, take
from csr_ray.store.atomic import write_atomically
from csr_ray.store.digests import Digest, plain_files
from csr_ray.store.journal import Journal

_UNIT_BYTES = 32 << 10
_BUCKET = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=500, help="units a run (default 500)")
    parser.add_argument("--pause-ms", type=float, default=20.0, help="between two commits (default 20)")
    add_json_flag(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_store_") as place, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
        log = Path(place, "moto.log")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            rows = _measure(Path(place), num_units=given.units, pause_s=given.pause_ms / 1e3, log=log)
        finally:
            server.terminate()
            server.wait()
    for name, value, unit in rows:
        print(f"{name:20} {value:12,.2f} {unit}")
    write_result(
        given.json,
        name="store",
        versions=versions_of("s3fs", "moto", "fsspec"),
        headline="url_vs_folder",
        rows=[{"name": name, "value": value, "unit": unit} for name, value, unit in rows],
    )


def _measure(place: Path, *, num_units: int, pause_s: float, log: Path) -> list[tuple[str, float, str]]:
    _make_bucket()
    commits_s: dict[str, list[float]] = {"folder": [], "url": []}
    sent_s: list[float] = []
    os.environ["CSR_RAY_CACHE"] = str(place / "cache")
    before = _num_requests(log)
    for number in range(2):
        commits_s["folder"] += _commit_all(str(place / f"run{number}"), num_units=num_units, pause_s=pause_s)[0]
        some_s, whole_s = _commit_all(f"s3://{_BUCKET}/run{number}", num_units=num_units, pause_s=pause_s)
        commits_s["url"] += some_s
        sent_s.append(whole_s)
    num_requests = _num_requests(log) - before
    os.environ["CSR_RAY_CACHE"] = str(place / "another machine")
    started_s = time.perf_counter()
    take(folder_of(f"s3://{_BUCKET}/run1"), say=print).release()
    back_s = time.perf_counter() - started_s
    folder, url = (1e6 * statistics.median(commits_s[name]) for name in ("folder", "url"))
    return [
        ("commit_us_folder", folder, "us"),
        ("commit_us_url", url, "us"),
        ("url_vs_folder", url / folder, ""),
        ("requests_a_unit", num_requests / (2 * num_units), ""),
        ("units_sent_per_s", num_units / statistics.mean(sent_s), "1/s"),
        ("brought_back_s", back_s, f"s for {num_units} units"),
    ]


def _commit_all(run_dir: str, *, num_units: int, pause_s: float) -> tuple[list[float], float]:
    """Commit the units; returns the seconds of each, and those until all of it has arrived."""
    folder = folder_of(run_dir)
    place = take(folder, say=print)
    folder.config.write_text("method: csr\n")
    journal = Journal(folder.journal)
    place.follow(journal)
    journal.before_commit = place.check
    seconds = []
    first_s = time.perf_counter()
    for number in range(num_units):
        started_s = time.perf_counter()
        path = folder.round(0) / "candidates" / f"unit_{number:016x}.parquet"
        data = number.to_bytes(8, "little") * (_UNIT_BYTES // 8)
        write_atomically(path, write=lambda temporary, data=data: temporary.write_bytes(data))  # type: ignore[misc]
        journal.commit(
            "rollout",
            round=0,
            phase="main",
            unit=f"{number:016x}",
            ids=[f"prompt-{16 * number + offset}" for offset in range(16)],
            files=plain_files({path: Digest.of_bytes(data)}, root=folder.root),
        )
        seconds.append(time.perf_counter() - started_s)
        time.sleep(pause_s)
    place.settle(wait_s=None)
    whole_s = time.perf_counter() - first_s
    place.release()
    return seconds, whole_s


def _make_bucket() -> None:
    import botocore.exceptions
    import botocore.session

    client = botocore.session.get_session().create_client("s3")
    for _ in range(100):
        try:
            client.create_bucket(Bucket=_BUCKET)
            return
        except botocore.exceptions.EndpointConnectionError:
            time.sleep(0.2)
    raise RuntimeError("the server does not come up")


def _num_requests(log: Path) -> int:
    return log.read_bytes().count(b"HTTP/1.1")


if __name__ == "__main__":
    told_in_a_line(main)
