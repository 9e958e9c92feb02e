"""Which architectures surgery works on: captured, sliced, compared with the oracle; Torch-Pruning beside it.

python benchmarks/coverage.py --only swin            one row, with the reason where something failed
python benchmarks/coverage.py --only swin --torch-pruning    the same with Torch-Pruning, in a process of its own
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch._dynamo  # before any clock: an import that a limit interrupts stays half done
import torch._inductor.config
from torch import Tensor

from benchmarks.coverage_models import PACKAGES, Architecture, architectures
from benchmarks.place import version
from sarto.errors import SartoError
from sarto.graph import (
    ModelGraph,
    Selection,
    capture,
    cut_points,
    evaluate,
    relative_difference,
    slice,
    zeroed,
)
from sarto.graph.analysis import ChannelGroup
from sarto.graph.expressions import kept_size
from sarto.graph.proof import EXACT, MOVED, prove_capture, random_twin

#: What happened to an architecture, from best to worst.
OUTCOMES = (
    "exact",
    "part refused",
    "no group",
    "not captured",
    "not exported",
    "inexact",
    "crashed",
    "too slow",
)
BATCH = 3
#: Random twins that are drawn before a check counts as vacuous.
N_TWINS = 5


class OutOfTime(BaseException):
    """A step took longer than it may; nothing between the clock and the row may take it for a failed step."""


def table(
    *,
    sources: list[str],
    only: list[str],
    percents: list[int],
    limit_seconds: float,
    torch_pruning: bool,
    torch_pruning_limit_seconds: float,
    seed: int,
) -> dict[str, Any]:
    """One row an architecture: captured?, groups, slicing against zeroing, times; Torch-Pruning where asked.

    Args:
        sources: `zoo`, `transformers`; what is not installed is skipped and says so.
        only: names of architectures; empty takes all.
        percents: shares of units kept when all groups are sliced at once; alone, each keeps half.
        torch_pruning: also prune half of everything with Torch-Pruning, in a process of its own.
    """
    rows = []
    for architecture in architectures(tuple(sources), tuple(only)):
        row = measure(architecture, percents=percents, limit_seconds=limit_seconds, seed=seed)
        if torch_pruning:
            from benchmarks.coverage_torch_pruning import prune_apart

            row |= prune_apart(architecture.name, limit_seconds=torch_pruning_limit_seconds, seed=seed)
            row["torch_pruning_version"] = version("torch-pruning")
        rows.append(row)
        print(describe(row), file=sys.stderr, flush=True)
    return {**summary(rows), "rows": rows}


def measure(
    architecture: Architecture, *, percents: Sequence[int], limit_seconds: float, seed: int
) -> dict[str, Any]:
    """The row of one architecture; whatever goes wrong becomes its outcome and reason."""
    row: dict[str, Any] = {"architecture": architecture.name, "source": architecture.source}
    package = PACKAGES[architecture.source]
    if importlib.util.find_spec(package) is None:
        return row | {"outcome": "skipped", "reason": f"extra not installed: {package}"}
    row["package"] = f"{package} {version(package)}"
    try:
        with limited(limit_seconds):
            _measure(row, architecture, percents, seed)
    except OutOfTime:
        row |= {"outcome": "too slow", "reason": f"not done within {limit_seconds:g} s"}
    except ImportError as error:
        row |= {"outcome": "skipped", "reason": str(error)}
    except Exception as error:
        row |= {"outcome": "crashed", "reason": f"{type(error).__name__}: {_short(str(error))}"}
    return row


def _measure(row: dict[str, Any], architecture: Architecture, percents: Sequence[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = architecture.module()
    example = architecture.example(2)
    row["params"] = sum(p.numel() for p in model.parameters())
    begun = time.perf_counter()
    try:
        graph = capture(model, example, prove=False)
    except SartoError as error:
        exported = _exports(model, example)
        row |= {
            "outcome": "not captured" if exported is None else "not exported",
            "reason": _short(str(error) if exported is None else exported),
        }
        return
    row["capture_seconds"] = _seconds(begun)
    begun = time.perf_counter()
    graph.analysis  # noqa: B018  (computed once, kept)
    row["analysis_ms"] = round(1000 * (time.perf_counter() - begun), 2)
    begun = time.perf_counter()
    try:
        graph = prove_capture(graph, model, example)
    except SartoError as error:
        row |= {"outcome": "not captured", "reason": _short(str(error))}
        return
    row["proof_seconds"] = _seconds(begun)
    row |= structure(graph)
    row |= exactness(graph, architecture.example(BATCH, seed + 1), percents, seed)
    row |= verdict(row, graph)


def structure(graph: ModelGraph) -> dict[str, Any]:
    """What surgery sees: groups, units, share of parameters that they touch, cut points, what pins."""
    analysis = graph.analysis
    gone = {group.id: 0 for group in analysis.sliceable}
    total = left = 0
    for name in graph.parameters:
        axes = analysis.tensor_axes[name]
        total += math.prod(kept_size(axis, {}) for axis in axes)
        left += math.prod(kept_size(axis, gone) for axis in axes)
    kinds = Counter(group.kind for group in analysis.sliceable)
    reasons = Counter(reason for group in analysis.groups.values() for reason in map(_pin, group.pinned))
    return {
        "n_nodes": len(graph.nodes),
        "n_groups": len(analysis.sliceable),
        "kinds": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        "n_units": sum(group.size for group in analysis.sliceable),
        "n_groups_pinned": sum(bool(group.pinned) for group in analysis.groups.values()),
        "sliceable_params_share": round(1 - left / total, 4) if total else 0.0,
        "n_cuts": len(cut_points(graph)),
        "pinned_by": ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())),
        "without_rule": ", ".join(sorted(op.split(".")[1] for op in analysis.unruled)),
        "n_refused": len(graph.refused),
    }


def exactness(
    graph: ModelGraph, inputs: tuple[Tensor, ...], percents: Sequence[int], seed: int
) -> dict[str, Any]:
    """Largest relative difference (float64) between slicing and zeroing, and the least that slicing moved.

    A group that moves no output in any twin, sliced or zeroed, is counted as without effect: its check says nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    given = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    twins: list[tuple[ModelGraph, tuple[Tensor, ...]]] = []

    def tried(groups: Sequence[ChannelGroup], share: float) -> tuple[float, float]:
        """Worst difference and largest move; other twins are drawn while the units had no effect (dead ReLUs)."""
        difference = moved = 0.0
        for place in range(N_TWINS):
            if place == len(twins):
                twin = random_twin(graph, generator)
                twins.append((twin, evaluate(twin, given)[0]))
            gap, shift = _compare(twins[place][0], groups, share, given, twins[place][1], generator)
            difference, moved = max(difference, gap), max(moved, shift)
            if moved > MOVED:
                break
        return difference, moved

    found: dict[str, Any] = {}
    groups = graph.analysis.sliceable
    if not groups:
        return found
    for percent in percents:
        difference, moved = tried(groups, percent / 100)
        found |= {f"difference_{percent}": difference, f"moved_{percent}": moved}
    alone = [(group.id, *tried([group], 0.5)) for group in groups]
    same = [name for name, gap, moved in alone if gap <= EXACT[torch.float64] and moved <= MOVED]
    bad = [f"{name} ({_why(gap, 1.0)})" for name, gap, _ in alone if gap > EXACT[torch.float64]]
    return found | {
        "n_alone_equal": len(alone) - len(bad) - len(same),
        "n_without_effect": len(same),
        "difference_alone": max(gap for _, gap, _ in alone),
        "moved_alone": min((moved for _, _, moved in alone if moved > MOVED), default=0.0),
        "alone_unequal": "; ".join(bad[:5]),
        "without_effect": "; ".join(same[:5]),
    }


def _compare(
    twin: ModelGraph,
    groups: Sequence[ChannelGroup],
    share: float,
    inputs: tuple[Tensor, ...],
    whole: tuple[Tensor, ...],
    generator: torch.Generator,
) -> tuple[float, float]:
    kept = {}
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        kept[group.id] = tuple(order[: max(1, round(share * group.size))].tolist())
    selection = Selection(kept)
    have, _ = evaluate(slice(twin, selection), inputs)
    return relative_difference(have, zeroed(twin, selection, inputs)), relative_difference(have, whole)


def verdict(row: Mapping[str, Any], graph: ModelGraph) -> dict[str, str]:
    """The outcome of a row, and its reason where it is not `exact`."""
    if not row["n_groups"]:
        return {"outcome": "no group", "reason": _refusals(graph) or f"pinned by {row['pinned_by']}"}
    wrong = [
        f"{key.removeprefix('difference_')} % of all: {_why(row[key], row[key.replace('difference', 'moved')])}"
        for key in row
        if re.fullmatch(r"difference_\d+", key)
        and not _equal(row[key], row[key.replace("difference", "moved")])
    ]
    if row["alone_unequal"]:
        wrong.append(f"alone: {row['alone_unequal']}")
    if wrong:
        return {"outcome": "inexact", "reason": "; ".join(wrong)}
    if graph.refused:
        return {"outcome": "part refused", "reason": _refusals(graph)}
    return {"outcome": "exact", "reason": ""}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
    """Counts of outcomes, and the share of what can be exported that is exact."""
    counts = Counter(row["outcome"] for row in rows)
    run = [row for row in rows if row["outcome"] != "skipped"]
    exported = [row for row in run if row["outcome"] != "not exported"]
    passed = [row for row in exported if row["outcome"] == "exact"]
    numbers: dict[str, float | int] = {
        "n_architectures": len(run),
        "n_skipped": counts["skipped"],
        "n_exported": len(exported),
        **{f"n_{name.replace(' ', '_')}": counts[name] for name in OUTCOMES},
        "n_groups": sum(row.get("n_groups", 0) for row in run),
    }
    if exported:
        numbers["exact_share"] = len(passed) / len(exported)
    gaps = [gap for row in passed for key, gap in row.items() if key.startswith("difference_")]
    if gaps:
        numbers["relative_difference_max"] = max(gaps)
    for key in ("capture_seconds", "analysis_ms", "proof_seconds"):
        if found := [row[key] for row in run if key in row]:
            numbers[f"{key}_median"] = statistics.median(found)
    for key in ("torch_pruning", "torch_pruning_heads"):
        for name, count in Counter(row[key] for row in run if row.get(key)).items():
            numbers[f"n_{key}_{name.replace(' ', '_')}"] = count
    return numbers


def describe(row: Mapping[str, Any]) -> str:
    """One line for people."""
    worst = max((v for k, v in row.items() if k.startswith("difference_")), default=None)
    seconds = sum(row.get(key, 0.0) for key in ("capture_seconds", "proof_seconds"))
    rival = ""
    if "torch_pruning" in row:
        rival = (
            f" | Torch-Pruning: {row['torch_pruning']}, told the heads: {row.get('torch_pruning_heads', '-')}"
        )
    return (
        f"{row['architecture']:20} {row['outcome']:13} {row.get('n_groups', '-')!s:>4} groups "
        f"{row.get('sliceable_params_share', 0):6.1%} {row.get('n_cuts', '-')!s:>3} cuts {seconds:5.1f} s "
        f"{'' if worst is None else f'{worst:.0e}'} {row['reason']}{rival}"
    )


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTime inside the block once the time is over (where the system has alarms)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _exports(model: torch.nn.Module, example: tuple[Tensor, ...]) -> str | None:
    """None when `torch.export` alone captures the model with a dynamic batch, else what it says."""
    try:
        with torch.no_grad():
            dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
            torch.export.export(model, example, dynamic_shapes=dynamic)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _equal(difference: float, moved: float) -> bool:
    return difference <= EXACT[torch.float64] and moved > MOVED


def _why(difference: float, moved: float) -> str:
    if difference > EXACT[torch.float64]:
        return f"differs by {difference:.1e}"
    return f"moved only {moved:.1e}"


def _pin(reason: str) -> str:
    """A pin reason without the names of nodes: `layer_norm`, `no rule for topk`, `batch axis`, `capture proof`."""
    text = re.sub(r" at [A-Za-z0-9_.]+", "", reason)
    text = re.sub(r"'[^']*'", "", text).strip()
    return text.partition(":")[0]


def _refusals(graph: ModelGraph) -> str:
    shown = [f"{name}: {why}" for name, why in list(graph.refused.items())[:3]]
    more = f"; and {len(graph.refused) - 3} more" if len(graph.refused) > 3 else ""
    return "; ".join(shown) + more


def _short(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:400]


def _seconds(begun: float) -> float:
    return round(time.perf_counter() - begun, 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Print rows for people (or JSON lines); 0 when every row is exact."""
    parser = argparse.ArgumentParser(prog="benchmarks/coverage.py", description="rows of the coverage table")
    parser.add_argument(
        "--only", action="append", default=[], help="an architecture, or the beginning of several"
    )
    parser.add_argument("--source", action="append", help="zoo or transformers (default: all)")
    parser.add_argument("--torch-pruning", action="store_true", help="Torch-Pruning too")
    parser.add_argument("--json", action="store_true", help="every cell, one JSON object a row")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one architecture")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = table(
        sources=options.source or list(PACKAGES),
        only=options.only,
        percents=[25, 50, 75],
        limit_seconds=options.limit,
        torch_pruning=options.torch_pruning,
        torch_pruning_limit_seconds=60,
        seed=0,
    )
    for row in found.pop("rows"):
        if options.json:
            print(json.dumps(row))
    print(json.dumps(found, indent=1))
    return 0 if found["n_exact"] == found["n_exported"] else 1


if __name__ == "__main__":
    sys.exit(main())
