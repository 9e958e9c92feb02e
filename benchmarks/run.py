"""Runs benchmark cases: a YAML case in, one JSON result out, with the commit and the machine.

python benchmarks/run.py benchmarks/cases/NAME.yaml             real run, into benchmarks/results/NAME.json
python benchmarks/run.py --smoke benchmarks/cases/*.yaml        small, each once; the results are thrown away
python benchmarks/run.py --table                                puts the results into benchmarks/README.md
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The root in place of this folder, so that no file here hides a package of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmarks.runner import main

    sys.exit(main())
