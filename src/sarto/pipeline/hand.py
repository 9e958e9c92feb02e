"""A process that slices: `python -m sarto.pipeline.hand MARKET [replace]`, pieces in, outcomes out, a JSON line each.

It ends when its input does: when whoever gave it work has no more, or is dead.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Slice what comes in on standard input."""
    # Whatever libraries print goes to standard error; the answers have the old standard output for themselves.
    answers = os.dup(1)
    os.dup2(2, 1)
    import torch

    from sarto.market import Store
    from sarto.pipeline.crew import Bench, Failed, Piece

    torch.set_num_threads(1)
    with Store.open(sys.argv[1]) as store:
        bench = Bench(store, replace="replace" in sys.argv[2:])
        _say(answers, {"ready": True})
        for line in sys.stdin:
            outcome = bench.make(Piece.from_plain(json.loads(line)))
            if isinstance(outcome, Failed):
                _say(answers, {"reason": outcome.reason})
            else:
                _say(answers, {"params": outcome.params, "seconds": outcome.seconds})


def _say(answers: int, answer: dict[str, object]) -> None:
    try:
        os.write(answers, f"{json.dumps(answer)}\n".encode())
    except BrokenPipeError:
        # Whoever gave the work is dead; what was finished is in the market.
        sys.exit(0)


if __name__ == "__main__":
    main()
