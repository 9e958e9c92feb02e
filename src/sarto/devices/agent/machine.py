"""What a machine is, in the words of a profile."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from sarto.devices.agent.limits import memory_bytes
from sarto.devices.latency import processor


@dataclass(frozen=True)
class Machine:
    """A machine that models are measured on.

    Attributes:
        processor: as it calls itself.
        cores: that may be used.
        memory_bytes: of all; 0 where it does not say.
        system: operating system and its version.
    """

    processor: str
    cores: int
    memory_bytes: int
    system: str


def this_machine() -> Machine:
    """The machine that this runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(processor(), cores, memory_bytes(), platform.platform(terse=True))
