"""What stands under a table of the page: spread, costs, distance to the controls, the paper's figures in words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.schema import Result
from benchmarks.slicepack.page_words import COST_WORDS, OWN_HEADS, WIDTHS, named

Rows = Sequence[Mapping[str, Any]]
#: Orders and draws of samples that a task asks for at least.
ORDERS, DRAWS = 10, 3
#: Test images a class that a data set has.
CIFAR10, CIFAR100 = 1000, 100
#: Controls of the tables of orders: the same size, another choice of units or repair; in words.
CONTROLS = {
    "random": "random units, repaired",
    "ours_agnostic": "the one that knows no classes",
    "energy": "the paper's energy criterion with our repair",
}


def provenance(result: Result) -> list[str]:
    """Commit, orders, draws and test images of a result, and what is fewer than the tasks ask for."""
    commit = (result.commit or "none")[:9] + (" with changes" if result.dirty else "")
    said = [f"Commit `{commit}`, {result.threads} thread(s)"]
    said += [
        f"{name.removeprefix('n_').replace('_', ' ')} {number}"
        for name, number in result.numbers.items()
        if name in ("n_orders", "n_draws", "n_samples_per_class")
    ]
    parameters = result.parameters
    if "n_tested" in parameters:
        tens = parameters.get("task", parameters.get("of")) == "T1" or parameters.get("data") == "cifar10"
        there = CIFAR10 if tens else CIFAR100
        tested = parameters["n_tested"]
        said.append(
            f"{tested} of {there:,} test images a class"
            if tested < there
            else f"all {there:,} test images a class"
        )
    own = result.numbers.get("accuracy_originals_own_classes")
    if own is not None:
        said.append(f"originals on their own classes {100 * own:.1f} %")
    return ["; ".join(said) + ".", ""]


def spread_over_orders(rows: Rows) -> float | None:
    """Standard deviation of an accuracy over orders, in points, mean over draws; None of a single order."""
    found = [row["accuracy_tested_deviation"] for row in rows if row["n_orders"] > 1]
    return 100 * statistics.mean(found) if found else None


def spread_over_draws(rows: Rows, name: str = "accuracy_tested") -> float | None:
    """Standard deviation over draws of an accuracy that is a mean over orders, in points; None of a single draw.

    Args:
        name: under which the rows tell the accuracy.
    """
    found = [row[name] for row in rows]
    return 100 * statistics.stdev(found) if len(found) > 1 else None


def cell(mean: float, spread: float | None) -> str:
    """An accuracy in percent with its spread."""
    return f"{100 * mean:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def costs(result: Result, methods: Iterable[str], rows: Rows | None = None) -> list[str]:
    """A table of what packs take: operations, bytes, milliseconds, slicing and packing.

    Args:
        rows: of the result that count; None: all.
    """
    counted: Rows = result.rows if rows is None else rows
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "FLOPs": ("flops_mean", lambda mean: f"{mean / 1e6:,.0f} M"),
        "bytes": ("size_bytes_mean", lambda mean: f"{mean / 1e6:.1f} M"),
        "slicing, s a class": ("slice_seconds_per_class", lambda mean: f"{mean:.2f}"),
        "packing, ms": ("pack_ms", lambda mean: f"{mean:.0f}"),
    }
    shown = {head: one for head, one in shown.items() if any(one[0] in row for row in counted)}
    timed = any(name.startswith("latency_ms_") for name in result.numbers)
    heads = [*shown, *["one input, ms"] * timed]
    lines = ["", f"| what it takes | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for method in methods:
        mine = [row for row in counted if row["method"] == method]
        cells = []
        for name, said in shown.values():
            found = [float(row[name]) for row in mine if row.get(name) is not None]
            cells.append(said(statistics.median(found)) if found else "")
        if timed:
            latency = result.numbers.get(f"latency_ms_{method}")
            cells.append(f"{latency:.1f}" if latency is not None else "")
        lines.append(
            f"| {named(method, kept_of_layers(result))}{_share(result, method)} | {' | '.join(cells)} |"
        )
    return lines


def above_controls(result: Result) -> list[str]:
    """By how many points the closed form lies above each control of the same size, one k after the other."""
    numbers, ks = result.numbers, result.parameters["ks"]
    found = []
    for method in result.parameters["methods"]:
        family = next((name for name in CONTROLS if method.startswith(name)), None)
        ours = method.replace(family, "ours", 1) if family is not None else method
        if family is None or f"accuracy_{ours}_k{ks[0]}" not in numbers:
            continue
        points = [numbers[f"accuracy_{ours}_k{k}"] - numbers[f"accuracy_{method}_k{k}"] for k in ks]
        share = numbers.get(f"params_ratio_{method}")
        size = f" at {100 * share:.0f} %" if share is not None else ""
        found.append(f"{CONTROLS[family]}{size}: {_points(points)}")
    return _above(ks, found)


def above_random_by_reading(result: Result) -> list[str]:
    """The same of the tables of texts, by reading."""
    numbers, ks = result.numbers, result.parameters["ks"]
    return _above(
        ks,
        [
            f"{CONTROLS['random']}, reading {reading}: "
            + _points(
                numbers[f"accuracy_{reading}_ours_k{k}"] - numbers[f"accuracy_{reading}_random_k{k}"]
                for k in ks
            )
            for reading in "ab"
        ],
    )


def above_random_by_head(result: Result) -> list[str]:
    """The same of the tables of a model's own classes, by head."""
    numbers, ks = result.numbers, result.parameters["ks"]
    return _above(
        ks,
        [
            f"{CONTROLS['random']}, head {said}: "
            + _points(
                numbers[f"accuracy_ours_{head}_k{k}"] - numbers[f"accuracy_random_{head}_k{k}"] for k in ks
            )
            for head, said in OWN_HEADS.items()
        ],
    )


def above_over_orders(result: Result) -> str:
    """Points of the closed form above each other cut of the same size, and their standard error over orders."""
    rows: Rows = result.rows
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["method"], []).append(row["accuracy_tested"])
    found = []
    for method, theirs in scores.items():
        if method == "ours" or result.numbers[f"params_{method}"] != result.numbers["params_ours"]:
            continue
        points = [100 * (a - b) for a, b in zip(scores["ours"], theirs, strict=True)]
        error = statistics.stdev(points) / len(points) ** 0.5
        found.append(f"{named(method)} {statistics.mean(points):+.1f} ± {error:.1f}")
    return f"Closed form above others of its size, points and their standard error: {'; '.join(found)}."


def figure(result: Result) -> list[str]:
    """A figure of the paper in words: what it prints, what was found here, and what differs."""
    numbers, parameters = result.numbers, result.parameters
    if result.name == "slicepack-overlap":
        n = len({row["class_a"] for row in result.rows} | {row["class_b"] for row in result.rows})
        share = {
            name: f"{numbers[f'iou_share_{name}']:.2f}" for name in ("css", "energy", "threshold", "random")
        }
        turned = ""
        if numbers["iou_share_energy"] > numbers["iou_share_threshold"]:
            turned = "Rate lies above threshold here, the other way round than in the paper. "
        return [
            "",
            "The paper (VGG16, five classes of T3) prints 0.33 to 0.34 by rate, which is chance, and 0.58 to 0.64 by "
            f"threshold. Here ({parameters['architecture']}, {n} classes of {parameters['task']}): {share['energy']} "
            f"by rate (the energy criterion), {share['threshold']} by threshold, {share['css']} by our choice, "
            f"{share['random']} for random units, {numbers['iou_share_by_chance']:.2f} by chance. {turned}One "
            "difference: the paper scores units after ability pooling has trained them for the class, here those of "
            "the donor as it is are scored.",
        ]
    if result.name == "slicepack-expansion":
        rows: Rows = result.rows
        row = max(rows, key=lambda row: float(row["usable_share"]))
        most = row["expansion_times"] / row["usable_share"]
        told = [
            f"{numbers[f'expansion_times_error_20_k{k}']:,.0f} and {numbers[f'expansion_times_error_30_k{k}']:,.0f} "
            f"at k = {k}"
            for k in parameters["ks"]
        ]
        left = [str(k) for k in (5, 10, 20) if k not in parameters["ks"]]
        more = f" Not run: k = {' and '.join(left)}, which the paper draws too." if left else ""
        return [
            "",
            "The paper prints about 200,000 times its models at an acceptable error of 0.2 and about 600,000 at 0.3. "
            f"Here: {'; '.join(told)}, of {most:,.0f} there can be, with originals of our own and "
            f"{parameters['n_tested']} test images a class.{more}",
        ]
    if result.name == "slicepack-seconds":
        told = [
            f"{numbers[f'slice_seconds_per_class_{method}']:.1f} s of slicing a class and "
            f"{1000 * numbers[f'pack_seconds_{method}']:.0f} ms of packing {numbers['n_classes']} classes at "
            f"{method.rpartition('_')[2]} %; {1000 * numbers[f'add_seconds_{method}']:.0f} ms of fitting the head for "
            f"the last class added, after {numbers[f'forward_seconds_{method}']:.2f} s of forward passes"
            for method in parameters["methods"]
        ]
        return [
            "",
            "The paper draws this for VGG16 and ResNet34 on an A100 and prints no number; ResNet34 was not run. Here: "
            f"{'; '.join(told)}. Slicing the class that is added is not in these milliseconds.",
        ]
    return []


def stocking(result: Result) -> list[str]:
    """How long stocking one donor takes, and what the figure leaves out."""
    numbers, sizes = result.numbers, result.parameters["sizes"]
    whole = numbers["stock_seconds"]
    many = ", ".join(f"{100 * size:.0f} %" for size in sizes)
    return [
        f"{whole:.0f} s for {numbers['n_fragments']} fragments at {many} of the donor, on {numbers['n_processes']} "
        f"processes. Before it the donor was added, which reads the samples and allocates widths: "
        f"{numbers['add_seconds']:.0f} s more. `sarto stock` makes two sizes where none is named, so it takes "
        f"about twice as long, some {2 * whole / len(sizes):.0f} s. Weights and images are random.",
    ]


def stream_widths(result: Result) -> list[str]:
    """Accuracy of slices whose widths were solved in three ways, by the share of the donor's cost that they keep."""
    numbers, shares = result.numbers, result.parameters["shares"]
    kept = [(cost, share) for cost in sorted(shares) for share in shares[cost]]
    heads = " | ".join(f"{100 * share:.0f} % of the {COST_WORDS[cost]}" for cost, share in kept)
    lines = [f"| accuracy, % | {heads} |", "|---|" + "---|" * len(kept)]
    for way, said in WIDTHS.items():
        mine = [r for r in result.rows if r["way"] == way]
        cells = []
        for cost, share in kept:
            there = [r for r in mine if (r["objective"], r["share"]) == (cost, share)]
            mean = numbers[f"accuracy_{cost}_{100 * share:.0f}_{way}"]
            cells.append(cell(mean, spread_over_draws(there, "accuracy")))
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return [*lines, "", f"± is the standard deviation over {numbers['n_draws']} sets of classes."]


def kept_of_layers(result: Result) -> float | None:
    """Share of the units kept of every layer in a table of texts; None where it is half of them."""
    share = result.parameters.get("share")
    return None if share == 0.5 else share


def _above(ks: Sequence[int], found: Sequence[str]) -> list[str]:
    if not found:
        return []
    named_ks = ", ".join(str(k) for k in ks)
    return [
        "",
        f"Closed form above its controls of the same size, points at k = {named_ks}: {'; '.join(found)}.",
    ]


def _points(differences: Iterable[float]) -> str:
    # Adding zero makes no difference of -0.0.
    return ", ".join(f"{round(100 * difference, 1) + 0.0:+.1f}" for difference in differences)


def _share(result: Result, method: str) -> str:
    """The size of a cut, where several of one name stand in a table."""
    share = result.numbers.get(f"params_ratio_{method}")
    return f", {100 * share:.0f} %" if share is not None and method not in ("ensemble", "probe") else ""
