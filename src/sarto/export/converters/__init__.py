"""Files that make a runtime's file, run by a worker in the environment that has the runtime; they import no sarto."""

from __future__ import annotations
