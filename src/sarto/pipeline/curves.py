"""What a supernet offers for a task: cost against quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sarto.devices.profiling import Predictor
from sarto.engines.factory.costs import CostTable
from sarto.engines.factory.search import curve
from sarto.engines.factory.subnets import expected, restricted, task_outputs
from sarto.engines.factory.supernet import Supernet
from sarto.errors import RequestError
from sarto.graph import ModelGraph, normalise
from sarto.types import StockedSupernet
from sarto.types.profile import DeviceProfile


@dataclass(frozen=True)
class CurvePoint:
    """One subnet of a task.

    Attributes:
        limit: of the assembler.
        ratio: share of open units.
        quality: expected on test samples; None where nothing was judged.
        latency_ms: predicted; None without a profile.
        latency_high_ms: upper bound of it.
    """

    limit: float
    ratio: float
    quality: float | None
    size_bytes: int
    memory_bytes: int
    latency_ms: float | None
    latency_high_ms: float | None

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def cost_quality(
    manifest: StockedSupernet, supernet: Supernet, task: str, profile: DeviceProfile | None = None
) -> tuple[list[CurvePoint], str]:
    """The curve of a task, smallest subnet first, and how its qualities are known, in words.

    Raises:
        RequestError: it is no task of the space.
    """
    asked = supernet.space.task(task)
    table = priced(manifest, supernet, asked, profile)
    points, basis = [], ""
    for found in curve(supernet, asked, table, profiled=profile is not None):
        told = expected(supernet.space, manifest.qualities, asked, found.ratio)
        basis = told.basis
        points.append(
            CurvePoint(
                limit=found.limit,
                ratio=found.ratio,
                quality=told.quality,
                size_bytes=round(found.size_bytes),
                memory_bytes=round(found.memory_bytes),
                latency_ms=found.latency_ms,
                latency_high_ms=found.latency_high_ms,
            )
        )
    return points, basis


def cost_table(supernet: Supernet, profile: DeviceProfile | None) -> CostTable:
    """Costs of a supernet's subnets, with the latency of a profile where there is one.

    Raises:
        RequestError: the profile is of another backbone, so that only blocks alone would say something.
    """
    if profile is None:
        return CostTable(supernet.graph, supernet.groups)
    predictor = Predictor(profile)
    if profile.backbones and not predictor.compiled(supernet.graph).of_backbone:
        known = ", ".join(model.backbone for model in profile.backbones)
        raise RequestError(
            f"profile {profile.name!r} is of other backbones ({known}); measure this one with `sarto device measure "
            f"{profile.name} MODEL`, or take a profile of blocks alone",
            where="profile",
        )
    return CostTable(supernet.graph, supernet.groups, predictor)


def ready(manifest: StockedSupernet, graph: ModelGraph) -> ModelGraph:
    """A model as it reads images in [0, 1]."""
    return normalise(graph, manifest.preprocessing.mean, manifest.preprocessing.std)


def priced(
    manifest: StockedSupernet, supernet: Supernet, task: frozenset[str], profile: DeviceProfile | None
) -> CostTable:
    """Costs of a task's subnets as they are delivered."""
    rows = task_outputs(supernet.space, [task])
    return cost_table(supernet, profile).delivered(
        lambda graph: ready(manifest, restricted(supernet.space, graph, rows))
    )


def draw_curve(points: Sequence[CurvePoint], path: Path, *, title: str) -> None:
    """The curve as an .svg or .png file: expected quality over latency, or over size without a profile.

    Raises:
        RequestError: nothing was judged, so that there is no quality to draw; or an ending that can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if path.suffix not in (".svg", ".png"):
        raise RequestError(f"--plot {path}: the ending must be .svg or .png")
    rows = [point for point in points if point.quality is not None]
    if not rows:
        raise RequestError("this supernet was not judged, so there is no quality to draw")
    timed = rows[0].latency_ms is not None
    across = [float(p.latency_ms or 0.0) if timed else p.size_bytes / 1e6 for p in rows]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(across, [100 * float(p.quality or 0.0) for p in rows], marker="o", markersize=2.5)
    axes.set_xlabel("predicted latency, ms" if timed else "weights, MB")
    axes.set_ylabel("expected quality, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def draw_looks(seen: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """The accuracy at each limit while a training goes on: step -> limit -> mean quality; an .svg file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = sorted(seen, key=int)
    for limit in seen[steps[-1]]:
        rows = [step for step in steps if limit in seen[step]]
        axes.plot([int(s) for s in rows], [100 * seen[s][limit] for s in rows], marker="o", label=limit)
    axes.set_xlabel("step")
    axes.set_ylabel("quality of a few tasks, %")
    axes.legend(title="units")
    axes.grid(alpha=0.3)
    figure.savefig(path)
