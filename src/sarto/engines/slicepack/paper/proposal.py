"""Plans by the paper's method: the packs of the closed form, at the same sizes, to be trained instead."""

from __future__ import annotations

from collections.abc import Mapping

from sarto.types import (
    BlockNode,
    BranchNode,
    Cost,
    HeadNode,
    Learnware,
    PaperSettings,
    Plan,
    PlanNode,
    SliceNode,
    SourceNode,
    WidthCost,
)


def as_paper(
    plan: Plan, learnwares: Mapping[str, Learnware], share: float, settings: PaperSettings
) -> Plan | None:
    """The same fragments at the same widths, trained by (2)-(10) and packed by (11)-(12).

    The layers keep as many units as the closed form does, so that both can be compared at equal size; which units is
    decided by rate, equation (5).

    Returns:
        None where the plan is no pack of one fragment a class: then there is nothing to train.
    """
    head = plan.nodes[plan.out]
    if not isinstance(head, HeadNode):
        return None
    below = plan.nodes[head.of]
    members = below.of if isinstance(below, BranchNode) else (head.of,)
    found = [_width(plan, name, learnwares, share) for name in members]
    widths = [width for width in found if width is not None]
    if len(widths) != len(head.classes):
        return None
    nodes: dict[str, PlanNode] = {}
    for name, node in plan.nodes.items():
        if isinstance(node, SliceNode):
            node = node.replace(select="energy", repair=None, seed=0, paper=settings)
        elif isinstance(node, HeadNode):
            node = node.replace(kind="paper", lam=None, paper=settings)
        nodes[name] = node
    predicted = plan.predicted
    if predicted is not None:
        predicted = _cost(predicted, [width.width for width in widths], len(head.classes), settings)
    return plan.replace(nodes=nodes, predicted=predicted, note=f"the paper's method, {plan.note}")


def _width(plan: Plan, member: str, learnwares: Mapping[str, Learnware], share: float) -> WidthCost | None:
    """Size of a member that is a fragment cut straight from its donor; None for others."""
    block = plan.nodes[member]
    cut = plan.nodes[block.of] if isinstance(block, BlockNode) else None
    source = plan.nodes[cut.of] if isinstance(cut, SliceNode) else None
    if not isinstance(source, SourceNode):
        return None
    return next((width for width in learnwares[source.of].widths if width.ratio == share), None)


def _cost(linear: Cost, widths: list[int], n_classes: int, settings: PaperSettings) -> Cost:
    """The cost with encoder and classifier in place of one linear head."""
    given, code = sum(widths), settings.enc_width or max(widths)
    params = code * (given + 1) + n_classes * (code + 1) - n_classes * (given + 1)
    return linear.replace(
        params=linear.params + params,
        flops=linear.flops + 2 * (code * given + n_classes * code - n_classes * given),
        memory_bytes=max(linear.memory_bytes, 4 * (given + code)),
        size_bytes=linear.size_bytes + 4 * params,
    )
