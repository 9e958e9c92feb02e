"""Stocking a model: prove its graph, count what it costs, measure what it knows, find out how wide it must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sarto.devices import count
from sarto.engines.slicepack import SHARES, allocate, read_donor, trunk_costs
from sarto.errors import GraphError, RequestError, closest
from sarto.graph import ModelGraph, block, features, leading, slice, uniform_counts
from sarto.market import (
    Intake,
    Labelled,
    Samples,
    Store,
    TextSamples,
    Vocabulary,
    reading_text_problems,
    sample_problems,
)
from sarto.pipeline.builder import ready, run
from sarto.pipeline.progress import Progress, silent
from sarto.types import Learnware, Objective, Preprocessing, TextPreprocessing, WidthCost
from sarto.types.fields import twice

#: What stocked widths are solved for. Milliseconds are not: they belong to a machine, a manifest to all.
STOCKED: tuple[Objective, ...] = ("params", "flops")
SKILL_BASIS = "recall on the samples that came with it; whether it was trained on them is the owner's word"


def stock(
    store: Store,
    graph: ModelGraph,
    *,
    name: str,
    classes: Sequence[str],
    preprocessing: Preprocessing | TextPreprocessing,
    samples: Samples | TextSamples | None = None,
    licence: str = "",
    notes: str = "",
    origin: str = "",
    vocabulary: Vocabulary | None = None,
    progress: Progress = silent,
) -> Learnware:
    """Put a captured model into a store, with its costs, its skill and its widths.

    Args:
        samples: labelled images or texts of its classes; those of others are left out, which progress tells, unless
            they look like a class of the model that has none, misspelt. Without samples there is no skill; without some
            of each class widths are the same share of every group, and orders cut fragments on their own samples.
        vocabulary: of a model that reads token ids.

    Raises:
        RequestError: classes, preprocessing, samples and the graph don't belong together; all problems at once.
        StoreError: the name is taken by other content, or writing failed.
    """
    check_reads(graph)
    doubled = [
        f"classes: {cls!r} is named {list(classes).count(cls)} times; each output needs a name of its own (--classes)"
        for cls in twice(classes)
    ]
    if doubled:
        raise RequestError(doubled[0], problems=doubled)
    own = _own_samples(samples, classes)
    problems = [*_misspelt(samples, classes), *_problems(graph, classes, preprocessing, vocabulary)]
    problems += sample_problems(own, classes, preprocessing) if own is not None else []
    if problems:
        raise RequestError(problems[0], problems=problems)
    for text in unused_samples(name, classes, samples):
        progress(text, 0, 3)
    donor, intake = ready(graph, preprocessing), Intake(preprocessing, vocabulary)
    inputs = intake.tensor(own) if own is not None else None
    progress("measuring skill", 0, 3)
    skill = _skill(donor, inputs, own, classes) if own is not None and inputs is not None else None
    progress("allocating widths", 1, 3)
    widths = _widths(donor, inputs, own, classes)
    progress("writing", 2, 3)
    learnware = store.add(
        graph,
        name=name,
        classes=classes,
        preprocessing=preprocessing,
        cost=count(donor),
        licence=licence,
        samples=own,
        notes=notes,
        origin=origin,
        skill=skill,
        skill_basis=SKILL_BASIS if skill is not None else None,
        widths=widths,
        vocabulary=vocabulary,
    )
    progress("writing", 3, 3)
    return learnware


def reads_text(graph: ModelGraph) -> bool:
    """Whether a graph reads one batch of whole numbers of a fixed length, as token ids are."""
    entry = graph.inputs[0]
    return len(graph.inputs) == 1 and len(entry.shape) == 2 and entry.dtype in ("int64", "int32")


def check_reads(graph: ModelGraph) -> None:
    """Refuse a model that reads neither one batch of images nor one of token ids, or gives more than one output.

    Raises:
        RequestError: says what it reads and gives, and what can be done with it.
    """
    reads = [
        f"{entry.name} ({entry.dtype}, [{', '.join(map(str, entry.shape[1:]))}])" for entry in graph.inputs
    ]
    problems = []
    images = len(graph.inputs[0].shape) == 4 and graph.inputs[0].dtype in ("float32", "float64")
    if len(reads) != 1 or not (images or reads_text(graph)):
        problems.append(
            f"the model reads {' and '.join(reads)}; a market stocks models with samples that measure them, and "
            "samples are images (float32, [channels, height, width]) or texts (int64, [length])"
        )
    if len(graph.outputs) != 1:
        problems.append(
            f"the model gives {len(graph.outputs)} outputs, a market stocks classifiers, which give one"
        )
    if problems:
        raise RequestError(
            f"{'; '.join(problems)}. `sarto inspect` and the functions of sarto.graph take this model",
            problems=problems,
        )


def width_cost(
    ready: ModelGraph, share: float, keep: Mapping[str, int], objective: Objective = "params"
) -> WidthCost:
    """Exact cost of a donor's extractor at given widths, from shapes alone."""
    small = slice(ready.sketch(), leading(keep))
    extractor = block(small, end=features(small).value)
    cost = count(extractor)
    width = features(small).width
    return WidthCost(
        ratio=share,
        objective=objective,
        keep=dict(keep),
        params=cost.params,
        flops=cost.flops,
        memory_bytes=cost.memory_bytes,
        size_bytes=cost.size_bytes,
        output_bytes=4 * width,
        width=width,
        trunks=trunk_costs(ready, extractor, keep) if share < 1.0 else (),
    )


def _own_samples(
    samples: Samples | TextSamples | None, classes: Sequence[str]
) -> Samples | TextSamples | None:
    if samples is None:
        return None
    known = [cls for cls in classes if cls in samples.classes]
    if not known:
        raise RequestError(
            f"the samples hold none of the model's classes ({', '.join(classes)}); they hold "
            f"{', '.join(samples.classes)}: rename the folders, or give the class names in the order of the outputs"
        )
    return samples.only(known)


def _misspelt(samples: Samples | TextSamples | None, classes: Sequence[str]) -> list[str]:
    """Samples of classes that the model does not have, where it has one of nearly that name without any samples."""
    if samples is None:
        return []
    bare = [cls for cls in classes if cls not in samples.classes]
    return [
        f"samples: the model has no class {cls!r} (did you mean {near!r}?), and {near!r} has no samples: rename "
        f"them, or leave out those of {cls!r}"
        for cls in samples.classes
        if cls not in classes and (near := closest(cls, bare)) is not None
    ]


def unused_samples(
    name: str, classes: Sequence[str], samples: Samples | TextSamples | None
) -> tuple[str, ...]:
    """What of a model's samples is of no use to it, and which of its classes have none, in words."""
    if samples is None:
        return ()
    strange = [cls for cls in samples.classes if cls not in classes]
    bare = [cls for cls in classes if cls not in samples.classes]
    told = []
    if strange:
        told.append(f"samples of {', '.join(strange)} are left out: {name} has no such class")
    if bare:
        told.append(
            f"no samples of {', '.join(bare)}: slicing tells each class from all others, so orders of {name} must "
            "bring their own; add it again with samples of every class"
        )
    return tuple(told)


def _problems(
    graph: ModelGraph,
    classes: Sequence[str],
    preprocessing: Preprocessing | TextPreprocessing,
    vocabulary: Vocabulary | None,
) -> list[str]:
    problems: list[str] = []
    try:
        n_outputs = features(graph).n_outputs
    except GraphError as error:
        return [str(error)]
    if n_outputs != len(classes):
        problems.append(
            f"the model has {n_outputs} outputs, {len(classes)} class names were given ({', '.join(classes)})"
        )
    shape = graph.inputs[0].shape
    if isinstance(preprocessing, TextPreprocessing):
        return problems + reading_text_problems(graph, preprocessing, vocabulary)
    if reads_text(graph):
        entry = graph.inputs[0]
        problems.append(
            f"the model reads {entry.name} ({entry.dtype}, {list(shape[1:])}), preprocessing is that of images: give a "
            "vocabulary (--vocabulary FILE) and preprocessing of the kind 'text'"
        )
    elif len(shape) != 4 or shape[1] != preprocessing.channels:
        problems.append(
            f"the model reads {_sizes(shape[1:])} (without batch), its mean and std are for {preprocessing.channels} "
            "channels: give --mean and --std one number for each channel"
        )
    elif preprocessing.size is not None and tuple(shape[2:]) != tuple(preprocessing.size):
        problems.append(
            f"the model reads images of {_sizes(shape[2:])}, its preprocessing says {_sizes(preprocessing.size)}: "
            f"leave out --size, or give --size {_sizes(shape[2:])}"
        )
    return problems


def _sizes(shape: Sequence[object]) -> str:
    return ",".join(map(str, shape))


def _skill(ready: ModelGraph, inputs: Tensor, samples: Labelled, classes: Sequence[str]) -> dict[str, float]:
    """Recall of each class that has samples, all outputs competing."""
    predicted = run(ready, inputs).argmax(1).numpy()
    found: dict[str, float] = {}
    for label, cls in enumerate(samples.classes):
        mine = samples.labels == label
        found[cls] = float((predicted[mine] == list(classes).index(cls)).mean())
    return found


def _widths(
    ready: ModelGraph, inputs: Tensor | None, samples: Labelled | None, classes: Sequence[str]
) -> list[WidthCost]:
    sliceable = ready.analysis.sliceable
    whole = {group.id: group.size for group in sliceable}
    if not sliceable:
        return [width_cost(ready, 1.0, {})]
    if inputs is None or samples is None or set(samples.classes) != set(classes):
        return [
            width_cost(ready, share, whole if share == 1.0 else uniform_counts(ready, share**0.5))
            for share in SHARES
        ]
    # `_own_samples` has put the classes in the order of the outputs.
    labels = torch.from_numpy(samples.labels.copy())
    readings = read_donor(ready, inputs, labels, len(classes))
    found: list[WidthCost] = []
    for objective in STOCKED:
        for share, keep in allocate(readings, SHARES, objective=objective).items():
            if share < 1.0 or not found:
                found.append(width_cost(ready, share, keep, objective))
    return found
