"""A supernet: a model whose channel groups have gates, and the assembler that sets them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sarto.engines.factory.assembler import Assembler
from sarto.engines.factory.gates import Layout
from sarto.engines.factory.skips import skippable, without_constants
from sarto.errors import GraphError, StoreError
from sarto.graph import INSIDE_HEADS, ModelGraph, Selection, gate, gate_layout, gateable, slice, through_norms
from sarto.types import AssemblerSettings, StockedSupernet, TaskSpace
from sarto.types.factory import Placement

#: Kinds of channel groups with gates. The paper's are what a block makes for itself: filters inside residual blocks and
#: hidden units. `wide` adds what blocks share and whole heads, and so lowers the floor.
PLACEMENTS: Mapping[Placement, frozenset[str]] = {
    "paper": frozenset(["filters", "hidden units"]),
    "wide": frozenset(["filters", "hidden units", "stream", "heads"]),
}


@dataclass(frozen=True, eq=False)
class Supernet:
    """A trained backbone with gates for a task space.

    Attributes:
        graph: the backbone without gates, weights as trained jointly; read as its placement does (`as_placed`).
        groups: channel groups with gates.
        assembler: in evaluation mode.
    """

    graph: ModelGraph
    space: TaskSpace
    groups: tuple[str, ...]
    assembler: Assembler

    @property
    def layout(self) -> Layout:
        """Group -> its columns among the gates."""
        return self.assembler.layout

    def gated(self) -> ModelGraph:
        """The backbone with one more input, the gates (n, units)."""
        return gate(self.graph, self.groups)

    def selection(self, gates: Tensor) -> Selection:
        """The units that gates (units,) open.

        Raises:
            GraphError: a group that must have an open gate has none.
        """
        return selection(gates, self.layout, self.assembler.skips)

    def subnet(self, gates: Tensor) -> ModelGraph:
        """The static model of gates (units,): the backbone's open units alone, all outputs."""
        kept = self.selection(gates)
        made = slice(self.graph, kept)
        return made if all(kept.kept.values()) else without_constants(made)


def as_placed(graph: ModelGraph, placement: Placement) -> ModelGraph:
    """The graph as a placement reads it: `wide` also has the streams that layer norms normalise as groups."""
    return through_norms(graph) if placement == "wide" and _has_norms(graph) else graph


def with_tensors(graph: ModelGraph, tensors: Mapping[str, Tensor]) -> ModelGraph:
    """The graph with other tensors of the same shapes, read as before."""
    made = replace(graph, tensors=tensors)
    made.__dict__["analysis"] = graph.analysis
    return made


def _has_norms(graph: ModelGraph) -> bool:
    return any(node.op == "aten.layer_norm.default" for node in graph.nodes)


def placed(graph: ModelGraph, placement: Placement = "paper") -> tuple[str, ...]:
    """Channel groups that get gates, by the part that their units play.

    Raises:
        GraphError: none can be gated; says why for each, and whether the wider placement has some.

    Reference:
        NN-Factory, arXiv 2308.15003, section 3.1, figure 6.
        Differs: chosen by the kind of channel group, so a stem's filters that no residual stream shares have gates too.
    """
    found = _gated(graph, placement)
    if not found:
        read = as_placed(graph, placement)
        reasons = {g.id: gateable(read, g) for g in read.analysis.groups.values()}
        why = "; ".join([f"{name}: {reason}" for name, reason in reasons.items() if reason is not None][:5])
        wider = _gated(graph, "wide") if placement == "paper" else ()
        raise GraphError(
            f"no channel group of this model can have gates (wanted: {', '.join(sorted(PLACEMENTS[placement]))}); "
            + (f"with placement: wide {', '.join(wider[:5])} can. " if wider else "")
            + f"`sarto inspect` shows its groups{f'. {why}' if why else ''}"
        )
    return found


def _gated(graph: ModelGraph, placement: Placement) -> tuple[str, ...]:
    kinds, read = PLACEMENTS[placement], as_placed(graph, placement)
    wanted = [g for g in read.analysis.sliceable if g.kind in kinds and g.kind not in INSIDE_HEADS]
    return tuple(group.id for group in wanted if gateable(read, group) is None)


def assembler_for(
    graph: ModelGraph, groups: Iterable[str], space: TaskSpace, settings: AssemblerSettings
) -> Assembler:
    """An assembler with fresh weights for the gates of a backbone, read as its placement does."""
    named = tuple(groups)
    skips = skippable(graph, named) if settings.skips else frozenset()
    return Assembler(len(space.properties), gate_layout(graph, named), settings, skips)


def revived(manifest: StockedSupernet, graph: ModelGraph, tensors: Mapping[str, Tensor]) -> Supernet:
    """The supernet of a manifest, from its backbone and the tensors of its assembler.

    Raises:
        StoreError: the tensors are not those of an assembler for this space and these groups.
    """
    graph = as_placed(graph, manifest.placement)
    assembler = assembler_for(graph, manifest.groups, manifest.space, manifest.assembler)
    try:
        assembler.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise StoreError(
            f"supernet {manifest.name!r}: its assembler's tensors are of another shape: {error}; train it again",
            where=manifest.id,
        ) from error
    return Supernet(graph, manifest.space, manifest.groups, assembler.eval())


def selection(gates: Tensor, layout: Layout, skips: Collection[str] = ()) -> Selection:
    """The units that gates (units,) of zeros and ones open.

    Args:
        skips: groups that may have none.

    Raises:
        GraphError: another group has no open gate.
    """
    kept = {}
    for group, (start, stop) in layout.items():
        units = torch.nonzero(gates[start:stop] > 0.5).flatten().tolist()
        if not units and group not in skips:
            raise GraphError(
                f"group {group!r} has no open gate; a group keeps at least one unit", where=group
            )
        kept[group] = tuple(units)
    return Selection(kept)


class Joint(nn.Module):
    """Supernet and assembler in training: inputs, task codes and limits in, outputs and the loss on limits out."""

    def __init__(self, graph: ModelGraph, groups: Iterable[str], assembler: Assembler) -> None:
        super().__init__()
        self.net = gate(graph, groups).module(train=True)
        self.assembler = assembler
        layout = gate_layout(graph, groups)
        if dict(layout) != assembler.layout:
            raise GraphError("the assembler was made for other gates than this backbone has")

    def forward(
        self,
        inputs: Tensor,
        codes: Tensor,
        limits: Tensor,
        hard: Tensor,
        clipped: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs of the gated network, and the loss on limits (n,)."""
        gates, excess = self.assembler.training_gates(codes, limits, hard=hard, clipped=clipped, noise=noise)
        return self.net(inputs, gates.to(inputs.dtype)), excess
