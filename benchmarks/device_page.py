"""The table and pictures of docs/devices.md from the results of `predictor-*`: `python -m benchmarks.device_page`.

Pictures need matplotlib (extra `bench`); they are after figures 8a and 13 of NN-Factory (arXiv 2308.15003).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.schema import Result

ROOT = Path(__file__).parents[1]
PAGE, RESULTS, IMAGES = (
    ROOT / "docs" / "devices.md",
    ROOT / "benchmarks" / "results",
    ROOT / "docs" / "images",
)
BEGIN, END = (
    "<!-- predictors: written by `python -m benchmarks.device_page` -->",
    "<!-- end of predictors -->",
)
#: Names of runtimes as people write them.
RUNTIMES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
BACKBONES = {
    "cifar-resnet56": "CIFAR ResNet-56 with its published weights",
    "mobilenet-v2": "MobileNetV2, 224 x 224",
}
HEAD = (
    "| | mean error | the same subnet measured twice | under the 95 % bound | bound above the prediction "
    "| the paper's line from as many | from all | built-in blocks alone |"
)
#: Ways of the curve -> the words for them and their colours.
WAYS = {"ours": ("ours, chosen subnets", "#0b6e4f"), "line": ("the paper's line, random subnets", "#c05a00")}
#: Ticks of the curve: subnets and percent.
TICKS, PERCENTS = (4, 16, 64, 250, 1000), (2, 3, 4, 6, 8, 12, 16)
Rows = Sequence[Mapping[str, Any]]


def results(folder: Path = RESULTS) -> list[Result]:
    """Results of the predictor's cases, by name."""
    return [Result.read(path) for path in sorted(folder.glob("predictor-*.json"), key=lambda path: path.stem)]


def page(found: Sequence[Result], images: Path | None = None) -> str:
    """The page with the tables of results in place of those that it has.

    Args:
        images: where pictures are drawn; None draws none, and names those that there would be.
    """
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [line for result in found for line in tables(result)]
    for name, said in PICTURES.items():
        if not any(_curves(result) for result in found):
            continue
        if images is not None:
            draw(name, found, images)
        lines += ["", f"![{said}](images/predictor-{name}.svg)"]
    body = "\n".join(lines)
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def tables(result: Result) -> Iterator[str]:
    """Lines of the table of a result: a device a row."""
    given = result.parameters
    yield (
        f"{BACKBONES.get(given['backbone'], given['backbone'])}, {given['n_held']} held-out random subnets, "
        f"predicted from {given['n_subnets']} measured ones, batch 1 "
        f"([{result.name}](../benchmarks/results/{result.name}.json); {result.machine.processor}, "
        f"{result.machine.cores} cores):"
    )
    yield ""
    yield HEAD
    yield "|---" * 8 + "|"
    for row in devices(result):
        cells = [
            row["error_ratio_mean"],
            row["repeat_noise_ratio"],
            row["under_bound_share"],
            row["bound_above_ratio_mean"],
            row["line_error_ratio_mean_few"],
            row["line_error_ratio_mean_many"],
            row["blocks_alone_error_ratio_mean"],
        ]
        told = f"{row['latency_ms_least']:.1f} to {row['latency_ms_most']:.1f} ms"
        yield f"| {_named(row['device'])}, {told} | {' | '.join(f'{100 * cell:.1f} %' for cell in cells)} |"
    yield ""


def devices(result: Result) -> Rows:
    """Rows of the devices that were measured."""
    return [row for row in result.rows if "error_ratio_mean" in row and row.get("kind") != "curve"]


def _named(device: str) -> str:
    runtime, _, threads = device.rpartition("-")
    return f"{RUNTIMES.get(runtime, runtime)}, {threads} thread{'' if threads == '1' else 's'}"


def _curves(result: Result) -> Rows:
    return [row for row in result.rows if row.get("kind") == "curve"]


#: Name of a picture -> what it shows in words.
PICTURES = {
    "accuracy": "how right predictions are on each device, as in figure 8a of the paper",
    "subnets": "error against the number of measured subnets, as in figure 13",
}


def draw(name: str, found: Sequence[Result], folder: Path) -> Path:
    """The file of a picture, written into the folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "sarto", "font.size": 9})
    figure, axes = pyplot.subplots(figsize=(5.6, 3.4), layout="constrained")
    (_accuracy if name == "accuracy" else _subnets)(found, axes)
    path = folder / f"predictor-{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _accuracy(found: Sequence[Result], axes: Any) -> None:
    named = [(result.parameters["backbone"], row) for result in found for row in devices(result)]
    keys = {"ours": "error_ratio_mean", "line": "line_error_ratio_mean_many"}
    for shift, (way, (said, colour)) in zip((-0.2, 0.2), WAYS.items(), strict=True):
        values = [100 * (1 - row[keys[way]]) for _, row in named]
        bars = axes.bar(
            [place + shift for place in range(len(named))], values, 0.38, color=colour, label=said
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(
        range(len(named)),
        [f"{name}\n{_named(row['device']).replace(', ', chr(10))}" for name, row in named],
        fontsize=7,
    )
    axes.set(ylabel="100 % less the mean error", ylim=(80, 104))
    axes.legend(loc="upper center", ncols=2, fontsize=7)


def _subnets(found: Sequence[Result], axes: Any) -> None:
    shapes = iter("osv^Dx*P")
    for result in found:
        for device in dict.fromkeys(row["device"] for row in _curves(result)):
            shape = next(shapes, ".")
            for way, (said, colour) in WAYS.items():
                points = [
                    (row["n_measured"], 100 * row["error_ratio_mean"])
                    for row in _curves(result)
                    if (row["device"], row["way"]) == (device, way)
                ]
                axes.plot(
                    *zip(*points, strict=True),
                    f"{shape}-",
                    color=colour,
                    alpha=0.8,
                    markersize=4,
                    label=f"{_named(device)}: {said}",
                )
    axes.set(xlabel="measured subnets", ylabel="mean error, %", xscale="log", yscale="log")
    axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axes.set_yticks(PERCENTS, [str(tick) for tick in PERCENTS])
    axes.minorticks_off()
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))


if __name__ == "__main__":
    PAGE.write_text(page(results(), IMAGES), encoding="utf-8")
