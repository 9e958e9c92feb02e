"""Which operator stopped an exporter, read from what the exporter says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sarto.graph import ModelGraph

#: How exporters and runtimes name an operator that they don't have.
_SAYINGS = (
    r"Missing out variants: \{'(aten::[\w.]+)'",
    r"Lowering not found: (aten\.[\w.]+)",
    r"Missing operator: \[\d+\] (aten::[\w.]+)",
    r"OpOverload\(op='(aten\.\w+)', overload='(\w+)'\)",
    r"torch\.ops\.(aten\.\w+(?:\.\w+)?)",
    r"No ONNX function found for <OpOverload\(op='(aten\.\w+)', overload='(\w+)'\)>",
    r"(?:operator|operation)s? (?:named |of type )?['\"]?((?:aten[.:]+|[A-Z])\w+)['\"]? (?:is|are) not supported",
    r"Could not find an implementation for (\w+)\(",
)


def operator_of(text: str, graph: ModelGraph) -> str | None:
    """The operator that an error names: as the graph calls it where it has it, else as the exporter does."""
    found = [name for saying in _SAYINGS for name in _named(saying, text)]
    ops = {node.op for node in graph.nodes}
    for name in found:
        bare = name.split(".")[1] if "." in name else name
        near = sorted(op for op in ops if op == name or op.split(".")[1] == bare)
        if near:
            return near[0]
    return found[0] if found else None


def _named(saying: str, text: str) -> Iterator[str]:
    for match in re.finditer(saying, text):
        name = ".".join(part for part in match.groups() if part)
        yield name.replace("::", ".")


def reason_of(text: str) -> str:
    """The last words of an error and its causes, in one line."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", text).splitlines() if line.strip()]
    return " ".join((lines[0] if lines else "no reason given").split())[:300]
