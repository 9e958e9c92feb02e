"""How long a person waits before sarto says anything."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def command_line(*, n_runs: int) -> dict[str, float]:
    """Milliseconds from starting Python to its end: bare, and for `sarto --help`."""
    bare = [_wall_ms("pass") for _ in range(n_runs)]
    call = "import sys; sys.argv = ['sarto', '--help']; from sarto.cli import main; main()"
    answer = [_wall_ms(call) for _ in range(n_runs)]
    return {
        "help_ms_median": statistics.median(answer),
        "help_ms_worst": max(answer),
        "python_ms_median": statistics.median(bare),
        "n_runs": n_runs,
    }


def _wall_ms(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)
    return 1000 * (time.perf_counter() - begun)
