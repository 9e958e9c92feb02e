"""The model of a chain of blocks, and which part of it came from where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sarto.engines.reassembly import Assembler, Donor, Fit, Making, Piece, Tuning, anatomy, tune_chain
from sarto.errors import GraphError
from sarto.graph import ModelGraph
from sarto.pipeline.intakes import Giver
from sarto.types import ChainNode, TuneNode


@dataclass
class Chains:
    """Makes the models of chains; what those share that are stitched alike one after the other is fitted once.

    One assembler is kept: stitches of another kind, or on other images, take its place.
    """

    _key: str = ""
    _maker: Assembler = field(default_factory=lambda: Assembler(()))
    _numbers: dict[str, int] = field(default_factory=dict)

    def graph(
        self, donors: Sequence[tuple[str, ModelGraph]], node: ChainNode, inputs: Tensor, read: str
    ) -> ModelGraph:
        """The model of a chain node.

        Args:
            donors: key and graph of each model that the node reads, all on one input; equal keys are equal models.
            inputs: the probe images as all of them read them.
            read: which images these are and how they are read, in a text.

        Raises:
            GraphError: a joint names a value that is no cut point of its donor.
        """
        said = node.stitch
        key = f"{said.to_json()} {read}"
        if key != self._key:
            fit = Fit(said.lam, said.rank, said.bias, said.kernel, said.match)
            making = Making(fit, sequential=said.sequential, random=said.random)
            self._key, self._maker, self._numbers = key, Assembler((), making), {}
        maker, places = self._maker, list[int]()
        for name, graph in donors:
            if name not in self._numbers:
                first = maker.donors[0].inputs if maker.donors else inputs
                self._numbers[name] = maker.add(Donor(name, graph, anatomy(graph), first))
            places.append(self._numbers[name])
        pieces, start = list[Piece](), None
        for i, place in enumerate(places):
            end = _number(maker.donors[place], node.joints[i][0]) if i < len(node.joints) else None
            pieces.append(Piece(place, start, end))
            if i < len(node.joints):
                start = _number(maker.donors[places[i + 1]], node.joints[i][1])
        return maker.graph(pieces, keep_cuts=True)


def trained_chain(
    graph: ModelGraph,
    node: TuneNode,
    inputs: Tensor,
    *,
    labels: Tensor | None = None,
    wanted: Tensor | None = None,
    folder: Path | None = None,
) -> ModelGraph:
    """The model of a chain after the training of a node; an interrupted one goes on from its folder.

    Args:
        labels, wanted: as of `tune_chain`; one of the two.

    Raises:
        RequestError: there is nothing to train.
        GraphError: the training met numbers that are none.
    """
    tuned, result = tune_chain(
        graph, inputs, tuning_of(node, len(inputs)), labels=labels, wanted=wanted, folder=folder
    )
    if result.stopped is not None:
        raise GraphError(f"the training of the chain ended early: {result.stopped}")
    return tuned


def tuning_of(node: TuneNode, n_images: int) -> Tuning:
    """How the training loop does what a node says, on so many images."""
    return Tuning(
        scope=node.scope,
        steps=node.epochs * math.ceil(n_images / node.batch),
        batch=node.batch,
        rate=node.rate,
        decay=node.decay,
        keep_statistics=node.start == "given",
        fresh=node.start == "fresh",
        seed=node.seed,
    )


def chain_parts(
    graph: ModelGraph, donors: Sequence[Giver], n_joints: int
) -> list[tuple[str, str | None, int]]:
    """(name, id of the donor, parameters) of each block and stitch of a built chain, in order; then of what is left."""
    sizes: dict[str, int] = {}
    for name in graph.parameters:
        sizes[name.partition(".")[0]] = sizes.get(name.partition(".")[0], 0) + graph.tensors[name].numel()
    parts: list[tuple[str, str | None, int]] = []
    for i, donor in enumerate(donors):
        if i and sizes.get(f"s{i}"):
            parts.append((f"stitch {i}", None, sizes[f"s{i}"]))
        parts.append((f"{donor.name}: block {i + 1} of {n_joints + 1}", donor.id, sizes.get(f"b{i}", 0)))
    rest = sum(size for prefix, size in sizes.items() if not _is_part(prefix))
    return [*parts, ("head", None, rest)] if rest else parts


def chain_spans(
    donors: Sequence[ModelGraph], joints: Sequence[tuple[str, str]]
) -> tuple[tuple[float, float], ...]:
    """Of each block, first to last: the shares of its donor's FLOPs that lie before it begins and before it ends.

    Args:
        donors: the model that each block is of.
    """
    found = []
    for i, graph in enumerate(donors):
        table = anatomy(graph)
        whole = max(table.flops[-1], 1)
        start = 0 if i == 0 else table.flops[table.number[joints[i - 1][1]]]
        end = table.flops[table.number[joints[i][0]]] if i < len(joints) else whole
        found.append((start / whole, end / whole))
    return tuple(found)


def _is_part(prefix: str) -> bool:
    return prefix[:1] in ("b", "s") and prefix[1:].isdigit()


def _number(donor: Donor, value: str) -> int:
    found = donor.anatomy.number.get(value)
    if found is None:
        raise GraphError(
            f"{value!r} is no cut point where a stitch can stand; sarto inspect lists them", where=value
        )
    return found
