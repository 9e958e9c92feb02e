"""How long surgery takes: slicing against a plain copy and against Torch-Pruning, capturing, and loading a graph."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.coverage_models import PACKAGES, Architecture, Given
from sarto.graph import ModelGraph, Selection, capture, read_graph, relative_difference, slice, write_graph
from sarto.graph.expressions import kept_positions
from sarto.graph.proof import prove_capture

_IMAGENET = {"pixel_values": Given("image", (3, 224, 224))}
_CIFAR = {"x": Given("image", (3, 32, 32))}
MODELS = {
    model.name: model
    for model in (
        Architecture(
            "resnet50", "transformers", "ResNetForImageClassification", _IMAGENET,
            {"num_labels": 1000}, "ResNetConfig", picked="logits",
        ),
        Architecture(
            "vit-b", "transformers", "ViTForImageClassification", _IMAGENET,
            {"num_labels": 1000}, "ViTConfig", picked="logits",
        ),
        Architecture("cifar-resnet8", "zoo", "cifar_resnet", _CIFAR, {"n_classes": 10, "depth": 8}),
    )
}  # fmt: skip
#: Kinds of groups that are cut. Query-key pairs and value dims stay whole: Torch-Pruning has no groups for them.
CUT = frozenset({"filters", "stream", "units", "hidden units", "heads"})
#: Parameters of glibc's `mallopt`.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def surgery(
    *,
    models: list[str],
    percents: list[int],
    n_repeats: int,
    n_loads: int,
    torch_pruning: bool,
    prove: bool,
    seed: int,
) -> dict[str, Any]:
    """Medians of CPU time over interleaved repeats, in one process.

    Args:
        models: names of `MODELS`.
        percents: shares of the units that are kept, drawn at random, in every group that is cut.
        n_repeats: of each cut; the three ways take turns.
        n_loads: of each file.
        torch_pruning: cut the same indices with Torch-Pruning too, where it is installed.
        prove: also time the proof of the capture.
    """
    numbers: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name in models:
        architecture = MODELS[name]
        key = name.replace("-", "_")
        package = PACKAGES[architecture.source]
        if importlib.util.find_spec(package) is None:
            rows.append({"model": name, "note": f"skipped: extra not installed: {package}"})
            continue
        torch.manual_seed(seed)
        model = architecture.module()
        found, graph = capturing(model, architecture, prove)
        numbers |= {f"{key}_{what}": number for what, number in found.items()}
        for percent in percents:
            selection = draw(graph, percent / 100, seed)
            row = cutting(model, architecture, graph, selection, n_repeats, torch_pruning)
            rows.append({"model": name, "percent_kept": percent, **row})
            _say(rows[-1])
        found = loading(model, architecture, graph, n_loads)
        numbers |= {f"{key}_{what}": number for what, number in found.items()}
        _say({name: {k: v for k, v in numbers.items() if k.startswith(key)}})
    for what in ("slice_to_copy", "torch_pruning_to_slice", "torch_pruning_with_groups_to_slice"):
        if values := [row[f"{what}_ratio"] for row in rows if f"{what}_ratio" in row]:
            numbers |= {f"{what}_ratio_min": min(values), f"{what}_ratio_max": max(values)}
    return {"n_models": len({row["model"] for row in rows if "slice_ms" in row}), **numbers, "rows": rows}


def capturing(
    model: nn.Module, architecture: Architecture, prove: bool
) -> tuple[dict[str, float], ModelGraph]:
    """CPU seconds of the first capture with its groups, of a second one, and of the proof."""
    example = architecture.example(2)
    numbers = {}
    for name in ("capture_and_groups_first_cpu_seconds", "capture_and_groups_cpu_seconds"):
        begun = time.process_time()
        graph = capture(model, example, prove=False)
        n_groups = len(graph.analysis.groups)
        numbers[name] = time.process_time() - begun
    numbers["groups_count"] = n_groups
    if prove:
        begun = time.process_time()
        graph = prove_capture(graph, model, example)
        numbers["proof_cpu_seconds"] = time.process_time() - begun
    return numbers, graph


def draw(graph: ModelGraph, share: float, seed: int) -> Selection:
    """A random share of the units of every group that is cut, at least one."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph.analysis.sliceable:
        if group.kind in CUT:
            order = torch.randperm(group.size, generator=generator)
            kept[group.id] = tuple(order[: max(1, round(share * group.size))].tolist())
    return Selection(kept)


def cutting(
    model: nn.Module,
    architecture: Architecture,
    graph: ModelGraph,
    selection: Selection,
    n_repeats: int,
    torch_pruning: bool,
) -> dict[str, Any]:
    """CPU milliseconds of one cut, three ways in turn, and whether the two cut models are the same function.

    The plain copy is `clone()` of the tensors that slicing makes anew, in the shapes that it leaves: the kept bytes
    alone, already gathered. Tensors that no group touches are shared with the source and are not in it. The ways take
    turns in memory that the process already holds; the two `fresh_memory` times pay for new pages as well.
    """
    sliced = slice(graph, selection)
    made = [tensor for name, tensor in sliced.tensors.items() if tensor is not graph.tensors[name]]
    kept_bytes = sum(tensor.numel() * tensor.element_size() for tensor in made)
    mallopt = keep_memory()
    rival = torch_pruning and importlib.util.find_spec("torch_pruning") is not None
    ways = ("slice", "copy", "torch_pruning", "grouping", "tracing")
    times: dict[str, list[float]] = {way: [] for way in ways}
    pruned = None
    for _ in range(n_repeats + 1):
        pruned = None
        groups: list[Any] = []
        if rival:
            traced: list[Any] = []
            tracing = partial(_rival_traced, traced, model, architecture)
            times["tracing"].append(_ms(tracing))
            pruned, dependencies = traced
            make = _rival_grouping(pruned, dependencies, graph, selection)
            times["grouping"].append(_ms(lambda make=make, groups=groups: groups.extend(make())))  # type: ignore[misc]
        times["slice"].append(_ms(lambda: slice(graph, selection)))
        times["copy"].append(_ms(lambda: [tensor.clone() for tensor in made]))
        if rival:
            times["torch_pruning"].append(_ms(lambda groups=groups: [group.prune() for group in groups]))  # type: ignore[misc]
    times = {way: found[1:] for way, found in times.items()}  # the first turn maps the memory
    fresh, copied = [], []
    for _ in range(n_repeats if mallopt else 0):
        fresh.append(_ms(lambda: slice(graph, selection), fresh=True))
        copied.append(_ms(lambda: [tensor.clone() for tensor in made], fresh=True))
    slice_ms, copy_ms = (statistics.median(times[way]) for way in ("slice", "copy"))
    row: dict[str, Any] = {
        "slice_ms": slice_ms,
        "slice_ms_max": max(times["slice"]),
        "slice_fresh_memory_ms": statistics.median(fresh) if fresh else None,
        "copy_fresh_memory_ms": statistics.median(copied) if fresh else None,
        "copy_ms": copy_ms,
        "slice_to_copy_ratio": slice_ms / copy_ms,
        "kept_mib": kept_bytes / 2**20,
        "params": sum(sliced.tensors[name].numel() for name in sliced.parameters),
        "n_groups_cut": len(selection.kept),
        "n_repeats": n_repeats,
    }
    if not rival or pruned is None:
        return {**row, "note": "Torch-Pruning: extra not installed" if torch_pruning else ""}
    rival_ms = statistics.median(times["torch_pruning"])
    whole_ms = statistics.median(
        a + b for a, b in zip(times["grouping"], times["torch_pruning"], strict=True)
    )
    inputs = architecture.example(1)
    with torch.no_grad():
        theirs = _fitted(pruned, graph, selection)(*inputs)
        ours = sliced.module()(*inputs)
    return {
        **row,
        "torch_pruning_ms": rival_ms,
        "torch_pruning_to_slice_ratio": rival_ms / slice_ms,
        "torch_pruning_with_groups_ms": whole_ms,
        "torch_pruning_with_groups_to_slice_ratio": whole_ms / slice_ms,
        "torch_pruning_copy_and_trace_ms": statistics.median(times["tracing"]),
        "torch_pruning_params": sum(parameter.numel() for parameter in pruned.parameters()),
        "difference": relative_difference((theirs,), (ours,)),
        "note": "",
    }


def _rival_traced(traced: list[Any], model: nn.Module, architecture: Architecture) -> None:
    """Puts in a copy of the model, which Torch-Pruning will cut in place, and its dependency graph."""
    tp: Any = importlib.import_module("torch_pruning")
    copied = copy.deepcopy(model)
    inputs = architecture.example(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced += [copied, tp.DependencyGraph().build_dependency(copied, example_inputs=inputs)]


def _rival_grouping(
    model: nn.Module, dependencies: Any, graph: ModelGraph, selection: Selection
) -> Callable[[], list[Any]]:
    """What makes Torch-Pruning's groups of the same units."""
    wanted = []
    for tensor, dropped in _dropped(graph, selection):
        module = model.get_submodule(tensor.rpartition(".")[0])
        wanted.append((module, dependencies.get_pruner_of_module(module).prune_out_channels, dropped))
    return lambda: [dependencies.get_pruning_group(*entry) for entry in wanted]


def _dropped(graph: ModelGraph, selection: Selection) -> Iterator[tuple[str, list[int]]]:
    """For each selected group: the weight that makes its units, and the rows that go."""
    for group in selection.kept:
        tensor = group.rpartition(":")[0]
        kept = set(kept_positions(graph.analysis.tensor_axes[tensor][0], selection.kept).tolist())
        yield tensor, [row for row in range(graph.tensors[tensor].shape[0]) if row not in kept]


def _fitted(pruned: nn.Module, graph: ModelGraph, selection: Selection) -> nn.Module:
    """The pruned module with the numbers of heads that its attention modules hold set right."""
    for group, units in selection.kept.items():
        if graph.analysis.groups[group].kind == "heads":
            attention = pruned.get_submodule(group.split(".weight:")[0].rpartition(".")[0])
            for name in ("num_attention_heads", "num_heads"):
                if hasattr(attention, name):
                    setattr(attention, name, len(units))
    return pruned


def loading(
    model: nn.Module, architecture: Architecture, graph: ModelGraph, n_loads: int
) -> dict[str, float]:
    """CPU milliseconds from files in the page cache to a module that runs, and to its first answer."""
    example = architecture.example(2)
    first = architecture.example(1)
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_graph(graph, Path(folder) / "graph")
        with torch.no_grad():
            batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
            torch.export.save(
                torch.export.export(model, example, dynamic_shapes=batch), Path(folder) / "model.pt2"
            )
        readers: dict[str, Callable[[], nn.Module]] = {
            "graph_file": lambda: read_graph(Path(folder) / "graph").module(),
            "pt2_torch": lambda: torch.export.load(Path(folder) / "model.pt2").module(),
        }
        with contextlib.suppress(ImportError):
            read_pt2 = importlib.import_module("sarto.graph.pt2").read_pt2
            readers["pt2_ours"] = lambda: read_pt2(Path(folder) / "model.pt2").module()
        found: dict[str, list[float]] = {}
        for _ in range(n_loads):
            for way, read in readers.items():
                loaded: list[nn.Module] = []
                found.setdefault(f"{way}_load", []).append(
                    _ms(lambda read=read, loaded=loaded: loaded.append(read()))  # type: ignore[misc]
                )
                with torch.no_grad():
                    answer = _ms(lambda loaded=loaded: loaded[0](*first))  # type: ignore[misc]
                found.setdefault(f"{way}_first_answer", []).append(answer)
        numbers |= {f"{what}_ms_median": statistics.median(times) for what, times in found.items()}
    return numbers


def _ms(call: Callable[[], Any], fresh: bool = False) -> float:
    """CPU milliseconds of this process in one call; what it returns is dropped after the clock stops.

    With one thread and warm caches that is the wall time of a quiet machine; others on the machine don't count.
    """
    gc.collect()
    if fresh:
        ctypes.CDLL(None).malloc_trim(0)
    gc.disable()
    try:
        begun = time.process_time()
        result = call()
        taken = 1000 * (time.process_time() - begun)
    finally:
        gc.enable()
    del result
    return taken


def keep_memory() -> bool:
    """Tell the C library to keep what is freed; False where it can't be told (no glibc).

    Else the pages of a large result come from the system in one call and from the heap in the next, and the
    order of the measurements decides who pays for them.
    """
    try:
        library = ctypes.CDLL(None)
        return bool(library.mallopt(_MMAP_THRESHOLD, 2**30) and library.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False


def _say(what: Mapping[str, Any]) -> None:
    print(what, file=sys.stderr, flush=True)
