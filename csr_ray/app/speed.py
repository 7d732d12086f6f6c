"""How fast a thread of this machine computes, asked in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

# The best product of some over a second, so that what else runs on the machine counts as little as it can.
_PROBE = """
import json, time, numpy
matrix, times = numpy.ones((768, 768), numpy.float32), []
for _ in range(40):
    started_s = time.perf_counter()
    matrix @ matrix
    times.append(time.perf_counter() - started_s)
    time.sleep(0.02)
print(json.dumps(2 * 768**3 / min(times) / 1e9))
"""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def gflops_of_a_thread() -> float:
    """1e9 float32 operations a second of one thread, in numpy's product of matrices; takes 1.5 seconds."""
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return float(json.loads(done.stdout))
