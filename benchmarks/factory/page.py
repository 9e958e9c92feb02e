"""The tables and pictures of docs/nn-factory.md from the results: `python -m benchmarks.factory.page`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.factory.plots import draw
from benchmarks.schema import Result

#: As `benchmarks.factory.numvqa` draws them.
SAMPLES = 256
ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "nn-factory.md", ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
#: Results with a table, in the order of the page; of those in `DRAWN` the rows are drawn too.
NAMES = (
    "numvqa",
    "numvqa-long",
    "numvqa-vit",
    "numvqa-vit-small",
    "cifar100",
    "cifar100-small",
    "attrod",
    "attrod-small",
    "orders",
    "baselines",
    "requests",
)
DRAWN = ("numvqa", "numvqa-long", "numvqa-vit", "numvqa-vit-small", "attrod", "attrod-small")
BEGIN, END = "<!-- rows: written by `python -m benchmarks.factory.page` -->", "<!-- end of rows -->"


def main() -> None:
    """Write the tables between their marks, and the pictures that they name."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = "\n".join(tables(RESULTS, IMAGES))
    PAGE.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


def tables(folder: Path, images: Path | None = None) -> Iterator[str]:
    """Lines of all tables whose results are there.

    Args:
        images: where pictures are drawn; None names none.
    """
    makers: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
        "numvqa": _numvqa,
        "numvqa-long": lambda result: _numvqa(result, "**NumVQA, trained longer**"),
        "numvqa-vit": lambda result: _numvqa(result, "**NumVQA with a ViT**"),
        "numvqa-vit-small": lambda result: _numvqa(result, "**NumVQA with a ViT, smaller**"),
        "cifar100": _cifar100,
        "cifar100-small": lambda result: _cifar100(result, "**CIFAR-100 by attributes, smaller**"),
        "attrod": _attrod,
        "attrod-small": lambda result: _attrod(result, "**AttrOD, generated images, smaller**"),
        "orders": lambda result: _orders(result["numbers"]),
        "baselines": lambda result: _baselines(result["numbers"]),
        "requests": lambda result: _requests(result["numbers"]),
    }
    paths = {name: folder / f"factory-{name}.json" for name in NAMES}
    if not any(path.is_file() for path in paths.values()):
        yield "No result yet."
    for name, path in paths.items():
        if not path.is_file():
            continue
        yield from makers[name](json.loads(path.read_text(encoding="utf-8")))
        if name in DRAWN and images is not None:
            for file, said in draw(Result.read(path), images):
                yield f"![{said}](images/{file})"
                yield ""


def _numvqa(result: Mapping[str, Any], title: str = "**NumVQA**") -> Iterator[str]:
    numbers = result["numbers"]
    yield (
        f"{title}, real MNIST test digits, half of the answers yes, {result['parameters']['n_test']} fresh images a "
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
            f"{100 * numbers['accuracy_table_2_worst']:.1f} % (the paper, larger and trained on a GPU: "
            f"{'86.7 to 97.8' if result['parameters'].get('transformer') else '99.1 to 99.9'} %)."
        )
        yield ""


def _cifar100(result: Mapping[str, Any], title: str = "**CIFAR-100 by attributes**") -> Iterator[str]:
    numbers, parameters = result["numbers"], result["parameters"]
    yield (
        f"{title}: two to five classes of one superclass told apart, up to {parameters['n_tasks']} "
        f"tasks of each kind, {parameters['n_test']} test images a task ({numbers['n_steps']:,} steps, "
        f"{numbers['n_units']:,} gated units):"
    )
    yield ""
    yield "| units at most | trained tasks, mean | worst | untrained, mean | worst |"
    yield "|---|---|---|---|---|"
    for limit in parameters["limits"]:
        key = f"{round(100 * limit)}"
        if f"accuracy_seen_mean_{key}" in numbers:
            cells = [
                f"{100 * numbers[f'accuracy_{kind}_{what}_{key}']:.1f} %"
                for kind in ("seen", "unseen")
                for what in ("mean", "worst")
            ]
            yield f"| {key} % | {' | '.join(cells)} |"
    yield (
        f"| the whole network of all classes | {100 * numbers['accuracy_seen_mean_shared']:.1f} % | | "
        f"{100 * numbers['accuracy_unseen_mean_shared']:.1f} % | |"
    )
    yield ""


#: Ways of `benchmarks.factory.detection` and the words for them.
WAYS = {
    "ours": "subnet for the task and the budget",
    "shared": "one shared detector of all kinds, whole",
    "retrain": "the whole network, trained for each task",
    "retrain_small": "the widest network within the budget, trained for each task",
    "prune_tune": "the shared detector pruned to that width and tuned for each task",
}


def _attrod(result: Mapping[str, Any], title: str = "**AttrOD, generated images**") -> Iterator[str]:
    numbers, rows = result["numbers"], result["rows"]
    yield (
        f"{title} (the paper's table 3): average precision at an overlap of one half, mean of "
        f"{numbers['n_tasks']} tasks, each under a budget of latency and memory; of {numbers['n_tasks_few']} tasks "
        f"there are only {numbers['few_samples_count']} images to learn from. Of {numbers['n_tasks']} orders "
        f"{numbers['n_delivered']} were delivered; measured once more, "
        f"{100 * numbers['within_latency_share']:.0f} % of these keep their latency, and "
        f"{100 * numbers['unused_latency_share_mean']:.0f} % of it is left unused."
    )
    yield ""
    yield "| way | precision | tasks with few images | ms, mean | keep the budget | once | each task |"
    yield "|---|---|---|---|---|---|---|"
    for way, said in WAYS.items():
        if f"map_share_mean_{way}" not in numbers:
            continue
        few = numbers.get(f"map_share_mean_few_{way}")
        known = [row[f"latency_ms_{way}"] for row in rows if f"latency_ms_{way}" in row]
        kept = [row[f"keeps_{way}"] for row in rows if f"keeps_{way}" in row]
        once = numbers.get(f"prepare_seconds_{'shared' if way == 'prune_tune' else way}")
        each = numbers.get(f"customise_seconds_{way}")
        cells = [
            f"{100 * numbers[f'map_share_mean_{way}']:.1f} %",
            "" if few is None else f"{100 * few:.1f} %",
            f"{sum(known) / len(known):.2f}" if known else "",
            f"{sum(kept)} of {len(kept)}" if kept else "",
            "" if once is None else f"{once:,.0f} s",
            "" if each is None else f"{each:,.1f} s",
        ]
        yield f"| {said} | {' | '.join(cells)} |"
    yield ""
    yield "The last two columns are the paper's table 4: what each way takes to prepare, and for each task and budget."
    yield ""


def _orders(numbers: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"**{numbers['n_orders']} orders with random latency budgets** on {numbers['n_devices']} profiled devices: "
        f"{100 * numbers['within_budget_share']:.0f} % within their budget when measured once more, "
        f"{100 * numbers['unused_share_mean']:.1f} % of it left unused on average "
        f"({100 * numbers['unused_share_mean_as_reported']:.1f} % by the measurement that they were delivered by)."
    )
    yield ""


def _baselines(numbers: Mapping[str, Any]) -> Iterator[str]:
    yield f"**Without an assembler**, mean over {numbers['n_questions']} questions, the same digits:"
    yield ""
    yield "| way | accuracy | parameters | CPU seconds |"
    yield "|---|---|---|---|"

    def row(said: str, accuracy: float, params: int, cost: str) -> str:
        return f"| {said} | {100 * accuracy:.1f} % | {params:,} | {cost} |"

    yield row(
        "one shared model with an output a question, whole",
        numbers["accuracy_shared"],
        numbers["shared_params"],
        f"{numbers['shared_prepare_cpu_seconds']:.0f} once",
    )
    yield row(
        "the whole network trained for each question",
        numbers["accuracy_retrain_whole"],
        numbers["retrain_whole_params"],
        f"{numbers['retrain_whole_cpu_seconds']:.0f} a question",
    )
    for limit in sorted({name.rpartition("_")[2] for name in numbers if name.startswith("accuracy_widths_")}):
        for way, said, cost in (
            ("widths", f"sampled widths, no task input, {limit} % of the units", None),
            ("retrain", "a narrower network of at most as many parameters for each question", "retrain"),
            ("prune_tune", "the shared model pruned to as many and tuned for each question", "prune_tune"),
        ):
            if f"accuracy_{way}_{limit}" not in numbers:
                continue
            took = (
                f"{numbers['widths_prepare_cpu_seconds']:.0f} once"
                if cost is None
                else f"{numbers[f'{cost}_cpu_seconds_{limit}']:.0f} a question"
            )
            yield row(said, numbers[f"accuracy_{way}_{limit}"], numbers[f"{way}_params_{limit}"], took)
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
        ("in_memory_first", "the same for a task that was never asked for"),
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
