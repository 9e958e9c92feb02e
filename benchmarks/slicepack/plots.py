"""Plots of the results for the docs: python -m benchmarks.slicepack.plots

Reads benchmarks/results and writes docs/images/slicepack-*.svg; needs matplotlib (extra `bench`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.schema import Result

ROOT = Path(__file__).parents[2]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
#: Methods of the tables in a plot, with their colours; others are left out.
COLOURS = {"ensemble": "#444444", "ours": "#0b6e4f", "ours_agnostic": "#4a90d9", "random": "#c05a00"}
SHARES = ("25", "17", "6", "3", "1")


def sizes(result: Result, axes: Any) -> None:
    """Accuracy against parameters, k = 20 (Figure 4)."""
    numbers = result.numbers
    k = max(int(name.rsplit("_k", 1)[1]) for name in numbers if name.startswith("accuracy_ensemble_k"))
    whole = numbers[f"accuracy_ensemble_k{k}"]
    axes.axhline(whole, color=COLOURS["ensemble"], linestyle=":", linewidth=1)
    axes.plot(numbers["params_ensemble"] / 1e6, whole, "s", color=COLOURS["ensemble"], label="ensemble")
    for family, colour in COLOURS.items():
        points = [
            (numbers[f"params_{family}_{share}"] / 1e6, numbers[f"accuracy_{family}_{share}_k{k}"])
            for share in SHARES
            if f"params_{family}_{share}" in numbers
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=family.replace("_", ", "))
    for name, value in numbers.items():
        if name.startswith("accuracy_paper_"):
            shown = name.removeprefix("accuracy_paper_").replace("_", " ")
            axes.axhline(value, color="#bb3355", linestyle="--", linewidth=0.8)
            axes.annotate(f"paper, {shown}", (0.99, value), xycoords=("axes fraction", "data"), ha="right")
    axes.set(xlabel="million parameters", ylabel="accuracy on the test split", title=result.name)
    axes.legend()


def overlap(result: Result, axes: Any) -> None:
    """Overlap of the kept units of two fragments, by criterion (Figure 5)."""
    names = [name for name in result.numbers if name.startswith("iou_share_") and not name.endswith("chance")]
    axes.bar([name.removeprefix("iou_share_") for name in names], [result.numbers[name] for name in names])
    axes.axhline(result.numbers["iou_share_by_chance"], color="black", linestyle=":", label="chance")
    axes.set(ylabel="intersection over union", title=result.name)
    axes.legend()


def expansion(result: Result, axes: Any) -> None:
    """Usable models by acceptable error (Figure 6)."""
    for k in sorted({row["n_samples_per_class"] for row in result.rows}, key=str):
        rows = [row for row in result.rows if row["n_samples_per_class"] == k]
        axes.plot(
            [row["acceptable_error"] for row in rows],
            [row["expansion_times"] for row in rows],
            "o-",
            label=f"k = {k}",
        )
    axes.set(xlabel="acceptable error", ylabel="times the market's models", title=result.name)
    axes.legend()


def seconds(result: Result, axes: Any) -> None:
    """Seconds a class by the number of classes (Figure 7)."""
    for method in dict.fromkeys(row["method"] for row in result.rows):
        rows = [row for row in result.rows if row["method"] == method]
        counts = [row["n_classes"] for row in rows]
        axes.plot(counts, [row["slice_seconds_per_class"] for row in rows], "o-", label=f"slicing, {method}")
        axes.plot(counts, [row["pack_seconds_per_class"] for row in rows], "s--", label=f"packing, {method}")
    axes.set(xlabel="classes ordered", ylabel="seconds a class", title=result.name)
    axes.legend()


def main() -> None:
    """Draw what there are results for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn: list[tuple[str, Callable[[Result, Any], None]]] = [
        *((path.stem, sizes) for path in sorted(RESULTS.glob("slicepack-t[1-5]*.json"))),
        ("slicepack-overlap", overlap),
        ("slicepack-expansion", expansion),
        ("slicepack-seconds", seconds),
    ]
    matplotlib.rcParams.update({"svg.hashsalt": "sarto", "font.size": 9})
    for name, draw in drawn:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        figure, axes = pyplot.subplots(figsize=(5.2, 3.4), layout="constrained")
        draw(Result.read(path), axes)
        figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
        print(IMAGES / f"{name}.svg")


if __name__ == "__main__":
    main()
