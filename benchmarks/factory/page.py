"""The tables of docs/nn-factory.md from the results: `python -m benchmarks.factory.page`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: As `benchmarks.factory.numvqa` draws them.
SAMPLES = 256
ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "nn-factory.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- rows: written by `python -m benchmarks.factory.page` -->", "<!-- end of rows -->"


def main() -> None:
    """Write the tables between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = "\n".join(tables(RESULTS))
    PAGE.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


def tables(folder: Path) -> Iterator[str]:
    """Lines of all tables whose results are there."""
    found = {
        name: json.loads((folder / f"factory-{name}.json").read_text(encoding="utf-8"))
        for name in ("numvqa", "baselines", "requests")
        if (folder / f"factory-{name}.json").is_file()
    }
    if not found:
        yield "No result yet."
    if "numvqa" in found:
        yield from _numvqa(found["numvqa"])
    if "baselines" in found:
        yield from _baselines(found["baselines"]["numbers"])
    if "requests" in found:
        yield from _requests(found["requests"]["numbers"])


def _numvqa(result: Mapping[str, Any]) -> Iterator[str]:
    numbers = result["numbers"]
    yield (
        f"**NumVQA**, real MNIST test digits, half of the answers yes, {result['parameters']['n_test']} fresh images a "
        f"question; trained {numbers['train_cpu_minutes']:.0f} CPU minutes on one thread ({numbers['n_steps']:,} "
        f"steps, {numbers['n_units']:,} gated units):"
    )
    yield ""
    yield "| units at most | 48 trained questions, mean | worst | 12 untrained, mean | worst | largest ratio |"
    yield "|---|---|---|---|---|---|"
    for limit in result["parameters"]["limits"]:
        key = f"{round(100 * limit)}"
        cells = [
            f"{100 * numbers[f'accuracy_{kind}_{what}_{key}']:.1f} %"
            for kind in ("seen", "unseen")
            for what in ("mean", "worst")
        ]
        largest = max(numbers[f"ratio_{kind}_largest_{key}"] for kind in ("seen", "unseen"))
        yield f"| {key} % | {' | '.join(cells)} | {100 * largest:.2f} % |"
    yield ""
    if "accuracy_unseen_recalibrated" in numbers:
        told = [
            f"{kind} questions from {100 * numbers[f'accuracy_{key}_before_recalibration']:.1f} to "
            f"{100 * numbers[f'accuracy_{key}_recalibrated']:.1f} %"
            for key, kind in (("seen", "trained"), ("unseen", "untrained"))
        ]
        yield f"Batch norm statistics of {SAMPLES} unlabelled images, at 10 % of the units, take {' and '.join(told)}."
        yield ""
    if "accuracy_table_2_mean" in numbers:
        yield (
            f"The eleven rows of the paper's Table 2: mean {100 * numbers['accuracy_table_2_mean']:.1f} %, worst "
            f"{100 * numbers['accuracy_table_2_worst']:.1f} % (the paper, larger and trained on a GPU: 99.1 to 99.9 %)."
        )
        yield ""


def _baselines(numbers: Mapping[str, Any]) -> Iterator[str]:
    yield f"**Without an assembler**, mean over {numbers['n_questions']} questions, the same digits:"
    yield ""
    yield "| way | accuracy | CPU seconds |"
    yield "|---|---|---|"
    yield (
        f"| one shared model with an output a question, whole | {100 * numbers['accuracy_shared']:.1f} % | "
        f"{numbers['shared_prepare_cpu_seconds']:.0f} once |"
    )
    for name, value in numbers.items():
        way, _, limit = name.removeprefix("accuracy_").rpartition("_")
        if not name.startswith("accuracy_") or not limit.isdigit():
            continue
        said = {
            "widths": f"sampled widths, no task input, {limit} % of the units",
            "retrain": f"a network of {limit} % of the width for each question",
            "prune_tune": f"shared model pruned to {limit} % and tuned for each question",
        }[way]
        cost = (
            f"{numbers['widths_prepare_cpu_seconds']:.0f} once"
            if way == "widths"
            else f"{numbers[f'{way}_cpu_seconds_{limit}']:.0f} a question"
        )
        yield f"| {said} | {100 * value:.1f} % | {cost} |"
    yield ""


def _requests(numbers: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"**A request** ({numbers['supernet_params'] / 1e6:.1f} M parameters, {numbers['n_units']:,} units, one "
        "thread, warm), medians:"
    )
    yield ""
    yield "| | ms | CPU ms |"
    yield "|---|---|---|"
    for name, said in (
        ("in_memory", "to the model in memory"),
        ("verified_file", "to a file, compared with the gated supernet"),
        ("paper", "the paper's way: twelve rounds, trace and cut by Torch-Pruning"),
    ):
        if f"{name}_ms_median" in numbers:
            yield f"| {said} | {numbers[f'{name}_ms_median']:.0f} | {numbers[f'{name}_cpu_ms_median']:.0f} |"
    yield ""
    yield (
        f"Largest difference from the gated supernet {numbers['difference_worst']:.1g}; unused budget "
        f"{100 * numbers['unused_budget_share_mean']:.3f} %."
    )


if __name__ == "__main__":
    main()
