"""Models that are called by keyword and answer with a record, as graphs with the model's own names."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sarto.errors import RequestError, suggest
from sarto.graph import ModelGraph, capture
from sarto.graph.model import rename_refs
from sarto.graph.proof import prove_capture
from sarto.pipeline.sources.inputs import InputSpec

_INNER = "model."
_PLACES = ("first", "second", "third", "fourth")


class Called(nn.Module):
    """A module as a function of up to four tensors by place.

    Attributes:
        names: the keyword of each tensor.
        fields: which parts of the answer to give, in this order; none: the answer itself.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], fields: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.fields = tuple(fields)

    def forward(
        self,
        first: Tensor,
        second: Tensor | None = None,
        third: Tensor | None = None,
        fourth: Tensor | None = None,
    ) -> Any:
        """The answer, or the asked parts of it: one tensor, or a tuple."""
        given = [tensor for tensor in (first, second, third, fourth) if tensor is not None]
        answer = self.model(**dict(zip(self.names, given, strict=True)))
        if not self.fields:
            return answer
        parts = tuple(answer[name] for name in self.fields)
        return parts[0] if len(parts) == 1 else parts


def check_names(model: nn.Module, inputs: Sequence[InputSpec]) -> None:
    """Refuse input names that `forward` does not have, and more inputs than a graph is captured with.

    Raises:
        RequestError: all problems at once.
    """
    known = inspect.signature(model.forward).parameters
    open_ended = all(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in known.values())
    problems = [
        f"{type(model).__name__} has no input {entry.name!r}{suggest(entry.name, known)}"
        for entry in inputs
        if entry.name not in known and not open_ended
    ]
    names = [entry.name for entry in inputs]
    problems += [
        f"input {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if len(inputs) > len(_PLACES):
        problems.append(f"{len(inputs)} inputs were given, at most {len(_PLACES)} can be")
    if problems:
        raise RequestError(problems[0], problems=problems)


def capture_called(
    model: nn.Module,
    names: Sequence[str],
    example: tuple[Tensor, ...],
    *,
    fields: Sequence[str] = (),
) -> ModelGraph:
    """The graph of a model that is called by keyword; tensors and inputs carry the model's own names.

    Args:
        names: keyword of each example.
        fields: parts of the answer that become outputs; none: the answer itself.

    Raises:
        GraphError: the model can't be captured.
    """
    called = Called(model, names, fields)
    # The proof pins groups by names, so names are settled before it.
    graph = _renamed(capture(called, example, prove=False), names)
    return prove_capture(graph, called, example)


def _renamed(graph: ModelGraph, names: Sequence[str]) -> ModelGraph:
    values = {place: name for place, name in zip(_PLACES, names, strict=False) if name not in graph.index}
    tensors = {name: name.removeprefix(_INNER) for name in graph.tensors}
    if len(set(tensors.values())) < len(tensors):
        tensors = {name: name for name in tensors}
    return replace(
        graph,
        inputs=tuple(replace(entry, name=values.get(entry.name, entry.name)) for entry in graph.inputs),
        nodes=tuple(
            replace(node, args={key: rename_refs(arg, values, tensors) for key, arg in node.args.items()})
            for node in graph.nodes
        ),
        outputs=tuple(values.get(name, name) for name in graph.outputs),
        tensors={tensors[name]: tensor for name, tensor in graph.tensors.items()},
        parameters=frozenset(tensors[name] for name in graph.parameters),
    )
