"""The command line answers at once: what needs torch is loaded inside the commands."""

from __future__ import annotations

import subprocess
import sys
import time

PROBE = """
import sys
sys.argv = ["sarto", "--help"]
from sarto.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "numpy", "scipy", "onnx", "onnxruntime", "matplotlib", "sqlalchemy"} & set(sys.modules)
print("loaded:", *sorted(heavy))
"""


def test_help_answers_quickly_and_loads_nothing_heavy() -> None:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60)
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, done.stderr
    assert "sarto" in done.stdout.lower()
    assert done.stdout.splitlines()[-1].strip() == "loaded:"
    assert seconds < 10, f"{seconds:.1f} s; it takes under one second on a free core"


def test_values_and_errors_load_no_torch() -> None:
    code = "import sys, sarto, sarto.types, sarto.errors; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
