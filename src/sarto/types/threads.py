"""How many threads to compute with: the cores that nobody else uses."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: What the libraries that compute read once, when they are imported.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def free_cores() -> int:
    """Cores of this process that the load of the last minute leaves, at least 1.

    On a busy machine more threads than free cores make small steps many times slower: they wait for each other.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        return cores
    return max(1, min(cores, round(cores - load)))


def limit_threads(threads: int | None, environment: MutableMapping[str, str]) -> int:
    """Set the variables that libraries read when they are imported; what the user has set there stays.

    Args:
        threads: None takes OMP_NUM_THREADS where it is set, else the free cores.

    Returns:
        the number of threads.
    """
    given = environment.get("OMP_NUM_THREADS", "")
    if threads is None and given.isdecimal() and int(given) > 0:
        chosen = int(given)
    else:
        chosen = threads if threads is not None else free_cores()
    for name in VARIABLES:
        if threads is not None:
            environment[name] = str(chosen)
        else:
            environment.setdefault(name, str(chosen))
    return chosen
