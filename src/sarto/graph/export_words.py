"""What torch says while it exports a model: kept quiet, and told in words about the model."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import PurePath

#: Loggers that report a failure which is raised, and said, anyway.
_LOUD = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export._trace")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \S+\n\s*(?P<code>[^\n]+)')
_CAUSE = re.compile(r"Caused by: \((?!_export/)(?P<file>\S+):(?P<line>\d+) in ")


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keep torch from logging and printing a failure; what a model itself prints comes out where nothing failed."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
        if printed.getvalue():
            sys.stderr.write(printed.getvalue())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def place_of(trace: str) -> str | None:
    """The last line of a stack trace that is not torch's own, as `model.py:13: x = x[x > 0]`; None where none is."""
    found = [match for match in _FRAME.finditer(trace) if "/torch/" not in match["file"]]
    if not found:
        return None
    last = found[-1]
    return f"{PurePath(last['file']).name}:{last['line']}: {last['code'].strip()}"


def reason_of(error: Exception) -> str:
    """Why export failed, and what to do about it where that is known."""
    text = re.sub(r"\bs\d+\b", "batch", str(error).strip())
    if "data-dependent expression" in text:
        cause = _CAUSE.search(text)
        place = place_of(text) or (cause and f"{PurePath(cause['file']).name}:{cause['line']}")
        at = f" (at {place})" if place else ""
        if "extract specialized integer" in text:
            return (
                f"the model takes a size or a number from its data{at}, and a graph has sizes that are constants or "
                "multiples of the batch. Give it a constant"
            )
        return (
            f"the model branches on data{at}: what it computes depends on the numbers in its input, and a graph always "
            "computes the same. Take the branch out, or write both ways and choose with torch.where"
        )
    return text.splitlines()[0] if text else type(error).__name__


__all__ = ["place_of", "quiet_export", "reason_of"]
