"""How soon the first tree starts over a million prompts, how fast both readers read, and whether the driver grows.

The prompt file and its pictures are real (JSONL, JPEGs of 320 x 240), and so is all reading; nothing is generated.
Each measurement is a process of its own, and the readers take turns. `ray` has a private Ray on this machine's CPUs.

    first_prompt_s_SIZE_READER     from an empty process to the first prompt that a generator would be handed:
                                   imports, Ray's start, the walk over all rows, and the first pictures looked at (by
                                   ray; the local reader leaves them to the generators)
    again_s_SIZE_READER            the same for a run that is started again, which finds the index of the rows
    walk_rows_per_s_READER         rows walked a second: parsed, judged, ids hashed and compared
    prompts_per_s_READER           prompts handed out a second after that, by ray with their pictures looked at
    driver_mib_SIZE_READER         the largest resident size of the driver's process

With --address the ray reader has the cluster that is found there, to which prompts and pictures are brought, and both
readers take turns in one process; `walk_rows_per_s_READER` and `prompts_per_s_READER` are as above, and besides:

    walk_rows_per_s_per_node, prompts_per_s_per_node        by ray, over the nodes that have CPUs
    walk_speedup                                            by ray over by the driver alone

Prompts have no such ratio, because only ray looks at their pictures.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from result_file import Row, add_json_flag, told_in_a_line, versions_of, write_result

SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
READERS = ("local", "ray")
_NUM_PICTURES = 500
_NUM_TAKEN = 9_000
_NUM_IN_TURNS = 200_000


def write_prompts(folder: Path, *, num: int, pictures: str) -> Path:
    """A prompt file of so many rows about a few hundred pictures, whose names begin with `pictures`."""
    path = folder / f"prompts_{num}.jsonl"
    text = "Describe what the person in this picture does, and what is around them."
    with path.open("w") as file:
        for number in range(num):
            picture = f"{pictures}{number % _NUM_PICTURES:03d}.jpg"
            file.write(f'{{"id": "prompt-{number:08d}", "image": "{picture}", "prompt": "{text}"}}\n')
    return path


def draw_pictures(folder: Path) -> None:
    """Noise, of which a JPEG is as large as of a photo."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(_NUM_PICTURES):
        pixels = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(folder / f"{number:03d}.jpg")


def run_one(path: Path, *, reader: str, index: Path, num_taken: int, started_s: float) -> dict[str, float]:
    """Open the prompts and take some, in this process.

    Args:
        started_s: when the process was started, by the clock.
    """
    from csr_ray.data.prompts import PromptFile
    from csr_ray.data.reading import LocalReader
    from csr_ray.machine.private_ray import listen_on_this_machine_only
    from csr_ray.records import Prompt

    private = None
    if reader == "ray":
        listen_on_this_machine_only()
        from actors.cluster.connect import connect
        from actors.data.reader import RayReader

        private = connect(num_cpus_needed=1)
    walk_s = time.perf_counter()
    prompts = PromptFile(
        str(path), images=None, limit=None, reader=RayReader() if private else LocalReader(), index_folder=index
    )
    walk_s = time.perf_counter() - walk_s
    stream: Any = prompts.stream()
    first = next(stream)
    assert isinstance(first, Prompt), first
    first_s = time.time() - started_s
    take_s = time.perf_counter()
    num = sum(1 for _ in islice(stream, num_taken))
    take_s = time.perf_counter() - take_s
    stream.close()
    if private:
        private.close()
    return {
        "first_s": first_s,
        "walk_rows_per_s": prompts.num / walk_s,
        "prompts_per_s": num / take_s if num else 0.0,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure(path: Path, *, reader: str, index: Path, num_taken: int = _NUM_TAKEN) -> dict[str, float]:
    """`run_one` in a process of its own."""
    command = [sys.executable, __file__, "--one", str(path), "--reader", reader, "--index", str(index)]
    command += ["--taken", str(num_taken), "--started-s", str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    said = ", ".join(f"{name} {value:,.1f}" for name, value in found.items())
    print(f"{path.stem} {reader}: {said}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="which to run")
    parser.add_argument("--repeats", type=int, default=2, help="turns of both readers, for the rates")
    parser.add_argument("--folder", type=Path, help="where the prompts lie meanwhile")
    parser.add_argument(
        "--address",
        default=None,
        metavar="auto|HOST:PORT|none",
        help="read on this cluster: auto, the one that a job of Ray's is on or this machine's; none: a private Ray",
    )
    parser.add_argument("--rows", type=int, default=_NUM_IN_TURNS, help="of the prompt file that --address reads")
    add_json_flag(parser)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--taken", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--started-s", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        one = run_one(
            given.one, reader=given.reader, index=given.index, num_taken=given.taken, started_s=given.started_s
        )
        print(json.dumps(one))
        return
    if given.address is not None:
        return on_a_cluster(given)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as directory:
        folder = Path(directory)
        draw_pictures(folder)
        for size in given.sizes:
            path = write_prompts(folder, num=SIZES[size], pictures=f"{folder}/")
            for reader in READERS:
                index = folder / f"index_{size}_{reader}"
                first = measure(path, reader=reader, index=index)
                again = measure(path, reader=reader, index=index, num_taken=0)
                rows += [
                    {"name": f"first_prompt_s_{size}_{reader}", "value": first["first_s"], "unit": "s"},
                    {"name": f"again_s_{size}_{reader}", "value": again["first_s"], "unit": "s"},
                    {"name": f"driver_mib_{size}_{reader}", "value": first["mib"], "unit": "MiB"},
                ]
        path = write_prompts(folder, num=_NUM_IN_TURNS, pictures=f"{folder}/")
        turns: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
        for turn in range(given.repeats):
            for reader in READERS:
                turns[reader].append(measure(path, reader=reader, index=folder / f"turn_{turn}_{reader}"))
        for name, unit in (("walk_rows_per_s", "rows/s"), ("prompts_per_s", "prompts/s")):
            for reader in READERS:
                value = statistics.median(one[name] for one in turns[reader])
                rows.append({"name": f"{name}_{reader}", "value": value, "unit": unit})
    print_table(rows)
    write_result(
        given.json,
        name="data",
        versions=versions_of("ray"),
        headline=f"first_prompt_s_{given.sizes[-1]}_ray",
        rows=rows,
    )


def print_table(rows: Sequence[Row]) -> None:
    for row in rows:
        print(f"{row['name']:<28}{row['value']:>14,.2f} {row['unit']}")


def on_a_cluster(given: argparse.Namespace) -> None:
    """How fast both readers are, the ray reader on all nodes of a cluster."""
    from on_cluster import carry, joined, say, spread

    from actors.data.reader import RayReader
    from csr_ray.data.prompts import PromptFile
    from csr_ray.data.reading import LocalReader

    flags = argparse.Namespace(address=given.address, replicas=(1,), gpus=0.0)
    rates: dict[str, list[float]] = {}
    with (
        joined(flags, demands_of=lambda num, gpus: ()) as found,
        tempfile.TemporaryDirectory(dir=given.folder) as directory,
    ):
        draw_pictures(Path(directory))
        name = write_prompts(Path(directory), num=given.rows, pictures="").name
        path = carry(Path(directory)) / name
        for turn in range(given.repeats):
            for reader in READERS:
                started_s = time.perf_counter()
                prompts = PromptFile(
                    str(path), images=None, limit=None, reader=RayReader() if reader == "ray" else LocalReader()
                )
                rates.setdefault(f"walk_rows_per_s_{reader}", []).append(
                    prompts.num / (time.perf_counter() - started_s)
                )
                stream: Any = prompts.stream()
                next(stream)
                started_s = time.perf_counter()
                num = sum(1 for _ in islice(stream, _NUM_TAKEN))
                rates.setdefault(f"prompts_per_s_{reader}", []).append(num / (time.perf_counter() - started_s))
                stream.close()
                walk, read = (rates[f"{what}_{reader}"][-1] for what in ("walk_rows_per_s", "prompts_per_s"))
                say(f"turn {turn + 1} of {given.repeats}, {reader}: {walk:,.0f} rows/s, {read:,.0f} prompts/s")
        machine = found.machine
    num_nodes = sum(1 for node in found.nodes if node.cpus)
    rows = [
        spread(name, values, unit=name.split("_per_s")[0].split("_")[-1] + "/s") for name, values in rates.items()
    ]
    for what in ("walk_rows_per_s", "prompts_per_s"):
        each = [rate / num_nodes for rate in rates[f"{what}_ray"]]
        rows.append({**spread(f"{what}_per_node", each, unit="a second and node"), "nodes": num_nodes})
    walks = zip(rates["walk_rows_per_s_ray"], rates["walk_rows_per_s_local"], strict=True)
    rows.append(spread("walk_speedup", [ray / local for ray, local in walks], unit="x the driver alone"))
    print_table(rows)
    write_result(
        given.json,
        name="data",
        versions=versions_of("ray", "pyarrow"),
        headline="walk_speedup",
        rows=rows,
        machine=machine,
        num_rows=given.rows,
    )


if __name__ == "__main__":
    told_in_a_line(main)
