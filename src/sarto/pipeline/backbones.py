"""The backbone of a supernet: made or taken from the market, its weights read, held against the data of its tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sarto import zoo
from sarto.engines.factory.data import Judge, TaskData
from sarto.errors import RequestError, ShapeError, suggest
from sarto.graph import ModelGraph, block, capture, features, with_head
from sarto.graph.model import size_at
from sarto.market import Store
from sarto.types import Backbone, Preprocessing, TaskSpace
from sarto.types.sources import refuse_pickle

#: Share of a network's parameters that a file of weights must hold.
LEAST_HELD = 0.5
#: Means and deviations that differ by less are the same.
_SAME = 1e-3
#: Names that a message spells out.
_SHOWN = 5


def backbone_graph(
    backbone: Backbone,
    space: TaskSpace,
    inputs: Tensor,
    store: Store | None,
    noted: Callable[[str], None] = lambda text: None,
) -> tuple[ModelGraph, str]:
    """The backbone with an output for each answer of a space, and where it comes from, in words.

    Args:
        inputs: a few samples, for capturing.
        noted: told which weights were read.

    Raises:
        RequestError: no such learnware or network, it can't be made with these arguments, or its weights don't fit.
        ShapeError: it does not read what the data give.
    """
    if backbone.learnware is not None:
        if store is None:
            raise RequestError("a learnware as backbone needs a market")
        learnware = store.get(backbone.learnware)
        whole = store.graph(learnware.id)
        wanted = list(size_at(whole.inputs[0].shape[1:], 1))
        if wanted != list(inputs.shape[1:]):
            raise ShapeError(
                f"learnware {learnware.name!r} reads {wanted}, the data of {space.name!r} give {list(inputs.shape[1:])}"
            )
        below = block(whole, end=features(whole).value)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            width = size_at(below.node(below.outputs[0]).shape, 1)[1]
            head = torch.nn.Linear(width, len(space.answers))
        made = with_head(below, head.weight.detach().clone(), head.bias.detach().clone())
        return made, f"learnware {learnware.name} ({learnware.id[7:19]})"
    name = str(backbone.zoo)
    known = [key for key in zoo.__all__ if key[0].islower() and callable(getattr(zoo, key))]
    if name not in known:
        raise RequestError(f"the zoo has no network {name!r}{suggest(name, known)}", where="backbone.zoo")
    function = getattr(zoo, name)
    given = dict(backbone.arguments)
    if "n_classes" in signature(function).parameters:
        given.setdefault("n_classes", len(space.answers))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            net = function(**given).eval()
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"{name} can't be made with {given}: {error}", where="backbone.arguments"
            ) from error
    origin = f"zoo {name}"
    if backbone.weights is not None:
        read = load_fitting(net, Path(os.path.expandvars(backbone.weights)))
        noted(f"backbone.weights: {read}")
        origin = f"{origin}, {read}"
    return capture(net, inputs, prove=False), origin


def load_fitting(net: torch.nn.Module, path: Path) -> str:
    """Put the tensors of a safetensors file into a network where name and shape are its own; in words, which.

    Raises:
        RequestError: the file is a pickle or can't be read, or holds less than half of the network's parameters.
    """
    refuse_pickle(path)
    try:
        given = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise RequestError(f"backbone.weights: {path} can't be read: {error}", where=str(path)) from error
    own = {
        name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    fitting = {
        name: value
        for name, value in given.items()
        if name in own
        and own[name].shape == value.shape
        and own[name].is_floating_point() == value.is_floating_point()
    }
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    held = sum(size for name, size in sizes.items() if name in fitting) / max(1, sum(sizes.values()))
    fresh = [
        f"{name} ({list(given[name].shape)} in the file, {list(own[name].shape)} here)"
        if name in given
        else name
        for name in own
        if name not in fitting
    ]
    if held < LEAST_HELD:
        raise RequestError(
            f"backbone.weights: {path.name} holds {held:.0%} of this network's parameters, at least {LEAST_HELD:.0%} "
            f"were expected. It holds {_few(given)}; the network has {_few(own)}, of which {_few(fresh)} were not "
            "found. Are they those of another network, or under other names?",
            where=str(path),
        )
    net.load_state_dict(fitting, strict=False)
    left = f"; fresh: {_few(fresh)}" if fresh else ""
    return f"{len(fitting)} of {len(own)} tensors from {path.name}{left}"


def check_backbone(
    graph: ModelGraph,
    space: TaskSpace,
    preprocessing: Preprocessing,
    data: TaskData,
    inputs: Tensor,
    answers: Tensor,
) -> None:
    """Refuse a backbone or a preprocessing that do not fit the data, before anything is trained.

    Args:
        inputs: a few samples.
        answers: of these.

    Raises:
        RequestError: all problems at once.
    """
    problems = list(_problems(graph, space, preprocessing, data, inputs, answers))
    if problems:
        raise RequestError(problems[0], problems=problems)


def learnware_notes(backbone: Backbone, preprocessing: Preprocessing, store: Store) -> Iterator[str]:
    """What to know of a learnware as backbone: whether it was trained on inputs with another mean and deviation."""
    if backbone.learnware is None:
        return
    own = store.get(backbone.learnware).preprocessing
    if isinstance(own, Preprocessing) and not (
        _near(own.mean, preprocessing.mean) and _near(own.std, preprocessing.std)
    ):
        yield (
            f"learnware {backbone.learnware!r} was trained with mean {list(own.mean)} and std {list(own.std)}, here it "
            f"reads mean {list(preprocessing.mean)} and std {list(preprocessing.std)}: its weights have to learn that"
        )


def _problems(
    graph: ModelGraph,
    space: TaskSpace,
    preprocessing: Preprocessing,
    data: TaskData,
    inputs: Tensor,
    answers: Tensor,
) -> Iterator[str]:
    yield from _scale_problems(preprocessing, space, data)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        yield f"backbone: has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, one of each is needed"
        return
    shape = list(size_at(graph.inputs[0].shape[1:], 1))
    wanted = [preprocessing.channels, *(preprocessing.size or shape[1:])]
    if len(shape) == 3 and shape != wanted:
        yield f"preprocessing: makes {wanted}, the data give {shape}"
    out = graph.node(graph.outputs[0]).shape
    if space.kind == "classification" and (len(out) != 2 or out[1] != len(space.answers)):
        yield (
            f"backbone: its output has shape {list(out)[1:]}, {len(space.answers)} answers were expected "
            f"({', '.join(space.answers[:8])})"
        )
    if isinstance(data, Judge):
        why = _judging_problem(graph, data, inputs, answers)
        if why:
            yield f"backbone: {why}"


def _scale_problems(preprocessing: Preprocessing, space: TaskSpace, data: TaskData) -> Iterator[str]:
    """Where the data draw with another mean or deviation than the delivered model will see."""
    drawn = {name: _numbers(getattr(data, name, None), preprocessing.channels) for name in ("mean", "std")}
    for name, found in drawn.items():
        asked: Sequence[float] = getattr(preprocessing, name)
        if found is not None and not _near(found, asked):
            yield (
                f"preprocessing.{name}: is {list(asked)}, the data of {space.name!r} draw with {list(found)}. Training "
                f"reads what is drawn, the delivered model what preprocessing makes: write {name}: {list(found)}, or "
                "draw as preprocessing says"
            )


def _numbers(value: object, channels: int) -> tuple[float, ...] | None:
    """One number for each channel, of what data carry as their mean or deviation; None where they carry none."""
    if isinstance(value, int | float):
        return (float(value),) * channels
    if isinstance(value, Sequence | Tensor) and all(isinstance(v, int | float | Tensor) for v in value):
        found = tuple(float(v) for v in value)
        return found * channels if len(found) == 1 else found
    return None


def _near(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(abs(a - b) <= _SAME for a, b in zip(one, other, strict=True))


@torch.no_grad()
def _judging_problem(graph: ModelGraph, data: Judge, inputs: Tensor, answers: Tensor) -> str:
    """Why the data can't say how good the backbone's outputs are; nothing where they can."""
    outputs = graph(inputs)
    if not isinstance(outputs, Tensor):
        return f"gives a {type(outputs).__name__}, a tensor was expected"
    told = f"its outputs have shape {tuple(outputs.shape)}, and {type(data).__name__}"
    try:
        each = data.loss(outputs, answers)
        quality = data.score(outputs, answers)
    except Exception as error:
        # What code that is not ours raises is up to it.
        return f"{told} can't judge them: {type(error).__name__}: {error}"
    if not isinstance(each, Tensor) or each.shape != (len(inputs),):
        found = tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__
        return (
            f"{told}.loss gave {found} for them; one number for each sample, {(len(inputs),)}, was expected"
        )
    if not bool(torch.isfinite(each).all()):
        return f"{told}.loss gave {each.tolist()} for fresh weights; numbers were expected"
    if not isinstance(quality, int | float) or not 0 <= quality <= 1:
        return f"{told}.score gave {quality!r} for them; a share in [0, 1] was expected"
    return ""


def _few(names: Sequence[str] | dict[str, Tensor]) -> str:
    listed = list(names)
    rest = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "") if listed else "nothing"
