"""Writes docs/slice-and-pack.md from the results: python -m benchmarks.slicepack.page"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.schema import Result
from benchmarks.slicepack.page_details import (
    DRAWS,
    ORDERS,
    above_controls,
    above_over_orders,
    above_random_by_head,
    above_random_by_reading,
    cell,
    costs,
    figure,
    kept_of_layers,
    provenance,
    spread_over_draws,
    spread_over_orders,
    stocking,
    stream_widths,
)
from benchmarks.slicepack.page_words import OWN_CLASSES, OWN_HEADS, WEIGHTED, named

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "slice-and-pack.md"
BEGIN = "<!-- tables: written by `python -m benchmarks.slicepack.page` -->"
END = "<!-- end of tables -->"
#: Accuracy in percent and millions of parameters of S&P (T) at k = 20, Table 2 of the paper.
PRINTED = {
    ("T1", "vgg16"): (76.37, 7.4),
    ("T2", "vgg16"): (81.40, 27.4),
    ("T3", "vgg16"): (79.55, 27.0),
    ("T4", "vgg16"): (73.72, 14.8),
    ("T5", "vgg16"): (65.03, 27.7),
    ("T1", "resnet34"): (80.31, 25.7),
    ("T2", "resnet34"): (84.50, 58.6),
    ("T3", "resnet34"): (84.65, 59.8),
    ("T4", "resnet34"): (79.46, 53.1),
    ("T5", "resnet34"): (71.73, 101.8),
}
#: Sizes of packs, in percent of the ensemble's parameters, and points under the ensemble that we allow ourselves.
SIZES = {25: 0.5, 17: 1.5, 6: 3.5}


def main() -> None:
    """Put the tables of all results between the marks of the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with the tables of all results between its marks; what stands around them stays."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def tables() -> str:
    """All tables, in the order of the tasks; results that are not there are left out."""
    folder = ROOT / "benchmarks" / "results"
    found = [Result.read(path) for path in sorted(folder.glob("slicepack-*.json"))]
    lines = _against_the_paper(found)
    for result in found:
        body = _body(result)
        picture = _picture(result)
        if body or picture:
            lines += [f"### {result.name}", "", f"{result.about[:1].upper()}{result.about[1:]}.", ""]
            lines += [*provenance(result), *body, *picture, *figure(result), ""]
    return "\n".join(lines)


def _body(result: Result) -> list[str]:
    """The table of a result, by what it was run with; empty where it has none."""
    parameters = result.parameters
    if "beta" in parameters:
        return _compared(result)
    if result.name == "slicepack-class-weighting":
        return _weighted(result)
    if result.name == "slicepack-stocking":
        return stocking(result)
    if result.name == "slicepack-stream-widths":
        return stream_widths(result)
    if any("reading" in row for row in result.rows):
        return _readings(result)
    if any("head" in row for row in result.rows):
        return _own_classes(result)
    return _by_k(result) if "ensemble" in parameters.get("methods", ()) else []


def _against_the_paper(results: Sequence[Result]) -> list[str]:
    """The paper's tasks at k = 20 in one table: what it prints, our largest pack that is no larger, the distances."""
    sizes = " | ".join(f"under it at {size} %" for size in SIZES)
    over: list[str] = []
    lines = [
        "### The paper's tasks at k = 20",
        "",
        "Accuracy in percent. `S&P (T)` is what the paper prints, on its own originals; the pack beside it is the "
        "largest of ours with no more parameters. The last columns say how many points the closed form lies under our "
        "ensemble at that share of its parameters, with the standard error over orders where it was measured.",
        "",
        f"| task | originals | S&P (T) | ours, no larger | share of the ensemble kept | our ensemble | {sizes} |",
        "|---|---|---|---|---|---|" + "---|" * len(SIZES),
    ]
    rows = []
    for result in results:
        key = (result.parameters.get("task"), result.parameters.get("architecture"))
        if key not in PRINTED or "accuracy_ensemble_k20" not in result.numbers:
            continue
        if any(f"accuracy_ours_{size}_k20" not in result.numbers for size in SIZES):
            continue
        accuracy, most = PRINTED[key]
        numbers = result.numbers
        best = max(size for size in SIZES if numbers[f"params_ours_{size}"] <= 1e6 * most)
        ours, whole = numbers[f"accuracy_ours_{best}_k20"], numbers["accuracy_ensemble_k20"]
        under = []
        for size in SIZES:
            name = f"points_under_ensemble_ours_{size}_k20"
            error = numbers.get(f"{name}_error")
            under.append(f"{numbers[name]:.1f}" + (f" ± {error:.1f}" if error is not None else ""))
            if numbers[name] > SIZES[size]:
                over.append(f"{key[0]} {key[1]} at {size} % ({under[-1]})")
        rows.append(
            f"| {key[0]} | {key[1]} | {accuracy:.2f} ({most} M) | {100 * ours:.1f} "
            f"({numbers[f'params_ours_{best}'] / 1e6:.1f} M) | {100 * ours / whole:.1f} % | "
            f"{100 * whole:.1f} ({numbers['params_ensemble'] / 1e6:.1f} M) | {' | '.join(under)} |"
        )
    measured = {row.split(" | ")[0].strip("| ") + " " + row.split(" | ")[1] for row in rows}
    missing = [f"{task} {net}" for task, net in PRINTED if f"{task} {net}" not in measured]
    allowed = ", ".join(f"{points} at {size} %" for size, points in SIZES.items())
    told = f"Wanted are at most {allowed} points under it; more were: {', '.join(over) or 'none'}."
    if missing:
        told += f" Not measured, for want of trained originals: {', '.join(missing)}."
    return [*lines, *rows, "", told, ""] if rows else []


def _picture(result: Result) -> list[str]:
    """The result's plot, where `plots` has drawn one."""
    if not (PAGE.parent / "images" / f"{result.name}.svg").exists():
        return []
    return ["", f"![{result.name}](images/{result.name}.svg)"]


def _weighted(result: Result) -> list[str]:
    """What weighing the wanted classes is worth, by size."""
    numbers, shares = result.numbers, [round(100 * share) for share in result.parameters["shares"]]
    heads = " | ".join(f"{share} % of the parameters" for share in shares)
    whole = f"{100 * numbers['accuracy_donor']:.1f}"
    lines = [f"| accuracy, % | {heads} |", "|---|" + "---|" * len(shares)]
    lines.append(f"| the whole model | {' | '.join(len(shares) * [whole])} |")
    for method, said in WEIGHTED.items():
        cells = [f"{100 * numbers[f'accuracy_{method}_{share}']:.1f}" for share in shares]
        lines.append(f"| {said} | {' | '.join(cells)} |")
    errors = [
        f"{numbers[f'points_ours_above_grail_{s}']:.1f} ± {numbers[f'points_ours_above_grail_{s}_error']:.1f}"
        for s in shares
    ]
    return [
        *lines,
        "",
        f"Closed form above GRAIL's repair, points and their standard error: {', '.join(errors)}.",
    ]


def _by_k(result: Result) -> list[str]:
    numbers, ks, methods = result.numbers, result.parameters["ks"], result.parameters["methods"]
    heads = " | ".join(f"k = {k}" for k in ks)
    timed = any(name.startswith("latency_ratio_") for name in numbers)
    lines = [
        f"| accuracy, % | parameters | share of the ensemble's |{' time, share of its |' * timed} {heads} |",
        "|---|---|---|" + "---|" * (timed + len(ks)),
    ]
    for method in methods:
        cells = []
        for k in ks:
            mine = [r for r in result.rows if (r["method"], r["n_samples_per_class"]) == (method, k)]
            cells.append(cell(numbers[f"accuracy_{method}_k{k}"], spread_over_orders(mine)))
        params, share = numbers[f"params_{method}"], numbers.get(f"params_ratio_{method}")
        shown = f"{100 * share:.1f} %" if share is not None else ""
        ratio = numbers.get(f"latency_ratio_{method}")
        time = f" {f'{100 * ratio:.0f} %' if ratio is not None else ''} |" * timed
        lines.append(f"| {named(method)} | {params / 1e6:.2f} M | {shown} |{time} {' | '.join(cells)} |")
    for name, value in numbers.items():
        if name.startswith("accuracy_paper_"):
            what = name.removeprefix("accuracy_paper_").replace("_k20", ", k = 20")
            blank = " | ".join(f"{100 * value:.2f}" if f"k{k}" in name else "" for k in ks)
            lines.append(
                f"| printed in the paper, by {what} (its own originals) | | |{' |' * timed} {blank} |"
            )
    n_orders, n_draws = numbers["n_orders"], numbers["n_draws"]
    told = "± is the standard deviation over orders."
    if n_orders < ORDERS or n_draws < DRAWS:
        told += f" A task asks for {ORDERS} orders and {DRAWS} draws of samples; here are {n_orders} and {n_draws}."
    if timed:
        told += " Time: one image in ONNX Runtime with one thread, in turns with the ensemble, first order."
    return [*lines, "", told, *above_controls(result), *costs(result, methods)]


def _readings(result: Result) -> list[str]:
    numbers, ks = result.numbers, result.parameters["ks"]
    methods = ("ensemble", "ours", "ours_no_repair", "random", "probe")
    kept = kept_of_layers(result)
    heads = " | ".join(f"k = {k}" for k in ks)
    lines = [f"| accuracy, % | reading | {heads} |", "|---|---|" + "---|" * len(ks)]
    for reading in "ab":
        for method in methods:
            cells = []
            for k in ks:
                at = (reading, method, k)
                mine = [r for r in result.rows if (r["reading"], r["method"], r["n_samples_per_class"]) == at]
                cells.append(cell(numbers[f"accuracy_{reading}_{method}_k{k}"], spread_over_draws(mine)))
            lines.append(f"| {named(method, kept)} | {reading} | {' | '.join(cells)} |")
    printed = [
        f"{100 * numbers[name]:.2f}" if (name := f"accuracy_paper_reading_unknown_k{k}") in numbers else ""
        for k in ks
    ]
    lines.append(f"| printed in the paper, with its own originals | not told | {' | '.join(printed)} |")
    own = [f"{100 * numbers[name]:.1f}" for name in sorted(numbers) if name.startswith("accuracy_original_")]
    ratio = 100 * numbers["params_ratio_a_ours"]
    lines += ["", f"The originals on their own classes, on the test split: {' and '.join(own)} %."]
    lines += [
        "",
        f"± is the standard deviation over {result.parameters['n_draws']} draws of samples. Packs have {ratio:.1f} % "
        "of the ensemble's parameters; word vectors are not counted.",
        *above_random_by_reading(result),
    ]
    one = [row for row in result.rows if row["reading"] == "a"]
    return [*lines, *costs(result, methods, one)]


def _own_classes(result: Result) -> list[str]:
    numbers, ks = result.numbers, result.parameters["ks"]
    heads = " | ".join(f"k = {k}" for k in ks)
    lines = [
        "Its own head: the model's classifier stays, and each class has the score that its fragment gives it. Fitted "
        "on the samples: the head that an order of several donors gets; for the whole model too it costs points.",
        "",
        f"| accuracy, %; in brackets points against the whole model | head | parameters | FLOPs | {heads} |",
        "|---|---|---|---|" + "---|" * len(ks),
    ]
    for method, head in ((method, head) for method in OWN_CLASSES for head in OWN_HEADS):
        cells = []
        for k in ks:
            name = f"{method}_{head}_k{k}"
            under = numbers.get(f"points_under_donor_{name}")
            beside = f" ({0.0 - under:+.1f})" if under is not None else ""
            cells.append(f"{100 * numbers[f'accuracy_{name}']:.1f}{beside}")
        costs = [f"{100 * numbers[f'{cost}_ratio_{method}']:.0f} %" for cost in ("params", "flops")]
        lines.append(
            f"| {OWN_CLASSES[method]} | {OWN_HEADS[head]} | {' | '.join(costs)} | {' | '.join(cells)} |"
        )
    worst = max(
        numbers[f"points_under_donor_worst_{method}_own_head_k{k}"]
        for method in ("ours", "ours_together")
        for k in ks
    )
    lines += [
        "",
        f"The whole model: {numbers['params_donor'] / 1e6:.2f} M parameters, {numbers['n_epochs_donor']} epochs, "
        f"{numbers['train_seconds_donor']:.0f} s of training on busy cores; {numbers['n_tested']} test inputs of "
        f"{numbers['n_classes']} classes. Worst draw of the closed form under the model's own head: "
        f"{0.0 - worst:+.1f} points. A fragment for each class serves orders of some of the classes; for all of them "
        "together it is larger than the model, and one fragment does.",
        *above_random_by_head(result),
    ]
    return lines


def _compared(result: Result) -> list[str]:
    numbers, methods = result.numbers, result.parameters["methods"]
    counted = any(number for name, number in numbers.items() if name.startswith("n_steps_"))
    lines = [
        f"| method | accuracy, % | share of the ensemble's | parameters | seconds a class |{' updates |' * counted}",
        "|---|---|---|---|---|" + "---|" * counted,
    ]
    for method in methods:
        if f"accuracy_{method}" not in numbers:
            lines.append(
                f"| {named(method)} | not run: its package was not installed | | | |{' |' * counted}"
            )
            continue
        kept = numbers.get(f"share_of_ensemble_accuracy_{method}")
        updates = f" {numbers[f'n_steps_{method}']:,.0f} |" if counted else ""
        lines.append(
            f"| {named(method)} | {100 * numbers[f'accuracy_{method}']:.1f} | "
            f"{f'{100 * kept:.1f} %' if kept is not None else ''} | {numbers[f'params_{method}'] / 1e6:.2f} M | "
            f"{numbers[f'seconds_per_class_{method}']:.2f} |{updates}"
        )
    if numbers["n_orders"] > 1:
        told = f"Accuracies are means over {numbers['n_orders']} orders. {above_over_orders(result)}"
    else:
        n = result.parameters["n_tested"] * len(str(result.rows[0]["order"]).split())
        mean = numbers.get("accuracy_ours", numbers[f"accuracy_{methods[0]}"])
        told = (
            f"One accuracy is of {n:,} images, so it has a standard error of about "
            f"{100 * (mean * (1 - mean) / n) ** 0.5:.1f} points by them alone."
        )
    ratio = numbers.get("paper_to_ours_seconds_ratio")
    if ratio is not None:
        told += (
            f" The paper's method by rate takes {ratio:.3g} times our seconds a class (wanted: 100 times). The number "
            "of updates is ours, since the paper tells none, and this ratio grows with it."
        )
    if counted:
        told += " Updates are of weights, for the whole order."
    return [*lines, "", told]


if __name__ == "__main__":
    main()
