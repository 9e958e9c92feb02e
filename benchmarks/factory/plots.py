"""Plots of the results for docs/nn-factory.md, after figures 9 to 12, 14 and 15 of the paper.

`python -m benchmarks.factory.page` draws them: docs/images/factory-*.svg, each from the rows that a result has. Needs
matplotlib (extra `bench`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.schema import Result

#: Kinds of tasks, with the words for them and their colours.
KINDS = {"seen": ("trained", "#0b6e4f"), "unseen": ("never trained", "#c05a00")}
#: Limit at which every task stands by itself.
LIMIT = 0.1


def by_limit(rows: Sequence[Mapping[str, Any]], kind: str, what: str) -> dict[float, list[float]]:
    """Limit -> values of all tasks of a kind."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.get("kind") == kind:
            found.setdefault(float(row["limit"]), []).append(float(row[what]))
    return dict(sorted(found.items()))


def quality(result: Result, axes: Any) -> bool:
    """Accuracy against the limit, mean and worst task (figure 9)."""
    limits: list[float] = []
    for kind, (said, colour) in KINDS.items():
        found = by_limit(result.rows, kind, "accuracy")
        if not found:
            return False
        limits = [100 * limit for limit in found]
        axes.plot(
            limits,
            [100 * statistics.fmean(v) for v in found.values()],
            "o-",
            color=colour,
            label=f"{said}, mean",
        )
        axes.plot(limits, [100 * min(v) for v in found.values()], "v:", color=colour, label=f"{said}, worst")
    axes.set(xlabel="units at most, %", ylabel="accuracy, %", xscale="log")
    axes.set_xticks(limits, [f"{limit:g}" for limit in limits])
    axes.minorticks_off()
    axes.legend()
    return True


def ratios(result: Result, axes: Any) -> bool:
    """Share of the units that are open against the limit (figure 11)."""
    for kind, (said, colour) in KINDS.items():
        found = by_limit(result.rows, kind, "ratio")
        points = [(100 * limit, 100 * ratio) for limit, held in found.items() for ratio in held]
        if not points:
            return False
        axes.plot(*zip(*points, strict=True), "o", color=colour, alpha=0.5, label=said)
    top = max(limit for limit, _ in points)
    axes.plot([0, top], [0, top], color="black", linewidth=0.8, linestyle=":", label="the limit")
    axes.set(xlabel="units at most, %", ylabel="units open, %")
    axes.legend()
    return True


def tasks(result: Result, axes: Any) -> bool:
    """Accuracy of every task with a tenth of the units, from the worst to the best (figure 14)."""
    start = 0
    for kind, (said, colour) in KINDS.items():
        held = sorted(by_limit(result.rows, kind, "accuracy").get(LIMIT, ()))
        if not held:
            return False
        axes.plot(range(start, start + len(held)), [100 * v for v in held], "o", color=colour, label=said)
        start += len(held) + 1
    axes.set(xlabel="tasks", ylabel=f"accuracy with {LIMIT:.0%} of the units, %", xticks=[])
    axes.legend()
    return True


def progress(result: Result, axes: Any) -> bool:
    """Accuracy of a few tasks while training goes on (figure 12)."""
    found: dict[float, list[tuple[int, float]]] = {}
    rows: Sequence[Mapping[str, Any]] = result.rows
    for row in rows:
        if row.get("kind") == "progress":
            found.setdefault(float(row["limit"]), []).append((int(row["step"]), 100 * float(row["accuracy"])))
    for limit, points in sorted(found.items()):
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=f"{limit:.0%} of the units")
    axes.set(xlabel="steps of joint training", ylabel="accuracy, %")
    if found:
        axes.legend()
    return bool(found)


def overlaps(result: Result, axes: Any) -> bool:
    """Share of open units that two tasks have in common (figure 15a)."""
    rows: list[Mapping[str, Any]] = [row for row in result.rows if row.get("kind") == "overlap"]
    names = list(dict.fromkeys(row["task"] for row in rows))
    if not names:
        return False
    found = {(row["task"], row["other"]): float(row["overlap"]) for row in rows}
    axes.imshow([[found[one, two] for two in names] for one in names], cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for i, one in enumerate(names):
        for j, two in enumerate(names):
            shade = "white" if found[one, two] < 0.6 else "black"
            axes.text(j, i, f"{found[one, two]:.2f}", ha="center", va="center", color=shade, fontsize=6)
    return True


def tradeoff(result: Result, axes: Any) -> bool:
    """Precision against latency of every task's model, by the way that it was made (figure 10)."""
    rows: Sequence[Mapping[str, Any]] = result.rows
    for way, said in (
        ("ours", "subnet"),
        ("retrain_small", "trained within the budget"),
        ("retrain", "trained"),
    ):
        points = [
            (float(row[f"latency_ms_{way}"]), 100 * float(row[f"map_{way}"]))
            for row in rows
            if f"map_{way}" in row
        ]
        if not points:
            return False
        axes.plot(*zip(*points, strict=True), "o", alpha=0.7, label=said)
    axes.set(xlabel="measured latency, ms", ylabel="average precision, %")
    axes.legend()
    return True


#: Name of a picture -> what draws it, and what it shows in words.
PICTURES: Mapping[str, tuple[Callable[[Result, Any], bool], str]] = {
    "quality": (quality, "accuracy against the share of the units, as in figure 9 of the paper"),
    "tradeoff": (tradeoff, "precision against latency, as in figure 10"),
    "ratios": (ratios, "units that are open against the limit, as in figure 11"),
    "progress": (progress, "accuracy while training goes on, as in figure 12"),
    "tasks": (tasks, "every question with a tenth of the units, as in figure 14"),
    "overlaps": (overlaps, "open units that two questions have in common, over all of both, as in figure 15"),
}


def draw(result: Result, folder: Path) -> Iterator[tuple[str, str]]:
    """File name and words of each picture that the rows of a result are enough for; written into the folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "sarto", "font.size": 9})
    for name, (make, said) in PICTURES.items():
        figure, axes = pyplot.subplots(figsize=(5.2, 3.4), layout="constrained")
        if make(result, axes):
            path = folder / f"{result.name}-{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            yield path.name, said
        pyplot.close(figure)
