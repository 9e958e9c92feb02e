"""Stocking for one order: the slices of every plan that it builds, fronts that fragments share included."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sarto.errors import RequestError
from sarto.market import Store
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import infeasible, propose, to_build
from sarto.pipeline.crew import FAILURES, Failed, Made, Piece, failed
from sarto.pipeline.intakes import sources
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.slicing import Slicer
from sarto.pipeline.stocking import Stocking, with_left
from sarto.pipeline.tasks import by_supernet
from sarto.types import Plan, Request, SliceNode


def stock_order(
    store: Store, request: Request, *, again: bool = False, progress: Progress = silent
) -> Stocking:
    """Slice what an order slices when it is made; only what is missing is made, in this process.

    What is left for the order: its random control, and further sizes where a budget was measured to be broken.

    Args:
        again: slice and replace also what is stocked.

    Raises:
        RequestError: the order is malformed, names unknown classes, or asks for subnets, which nobody slices.
        InfeasibleError: no plan keeps the budget.
        StoreError: the market can't be read.
    """
    begun = time.perf_counter()
    if by_supernet(store, request):
        raise RequestError(
            "an order by task is met by subnets, which are not sliced: there is nothing to stock"
        )
    plans = propose(check_order(request, store))
    if not plans.feasible:
        raise infeasible(plans)
    order = plans.order
    places = _places(to_build(plans))
    if not places:
        why = "; ".join(plans.without) or "what would be built takes whole donors"
        raise RequestError(f"nothing of this order is sliced ({why}): there is nothing to stock")
    pieces = {key: _piece(order, plan, name, key) for key, (plan, name) in places.items()}
    progress("looking for fragments", 0, len(pieces))
    present = frozenset[str]() if again else store.sound_fragments(pieces)
    samples = {order.samples.digest: order.samples, **{s.digest: s for s in order.donor_samples.values()}}
    builder, slicer = Builder(store, samples), Slicer(store)
    made, missed = list[Made](), list[Failed]()
    for key, piece in pieces.items():
        if key in present:
            continue
        plan, _ = places[key]
        done = len(present) + len(made) + len(missed)
        progress(f"slicing {piece.cls} out of {piece.name}", done, len(pieces))
        try:
            graph, lineage = slicer.make(piece.node, builder.cut(plan, piece.node, plan.subkeys()))
            store.put_fragment(key, graph, lineage, replace=again)
        except FAILURES as error:
            missed.append(failed(piece, error))
        else:
            made.append(Made(piece, lineage["params"], lineage["seconds"]))
        progress(f"sliced {piece.cls} out of {piece.name}", done + 1, len(pieces))
    there = tuple(piece for key, piece in pieces.items() if key in present)
    return Stocking(tuple(made), there, tuple(with_left(store, missed)), (), time.perf_counter() - begun)


def _places(plans: Sequence[Plan]) -> dict[str, tuple[Plan, str]]:
    """Key of each slice -> a plan that has it, and its name there; fronts come before what is cut from them."""
    found: dict[str, tuple[Plan, str]] = {}
    for plan in plans:
        keys = plan.subkeys()
        cuts = {name: node for name, node in plan.nodes.items() if isinstance(node, SliceNode)}
        fronts = {node.of for node in cuts.values()}
        for name in sorted(cuts, key=lambda name: name not in fronts):
            found.setdefault(keys[name], (plan, name))
    return found


def _piece(order: Order, plan: Plan, name: str, key: str) -> Piece:
    node = plan.nodes[name]
    if not isinstance(node, SliceNode):
        raise TypeError(f"{name!r} is no slice")
    donor = order.learnwares[next(sources(plan, name))]
    share = next((width.ratio for width in donor.widths if dict(width.keep) == dict(node.keep)), None)
    return Piece(
        key, donor.id, donor.name, ", ".join(node.classes), share, node, order.request.samples_per_class
    )
