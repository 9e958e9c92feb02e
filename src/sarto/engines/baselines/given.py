"""What every baseline is given, and what it gives back: the same samples, a stated budget, scores of classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.graph import ModelGraph

#: Called with the step in words, updates done and updates asked for.
Progress = Callable[[str, int, int], None]
#: Samples that run at once where nothing is trained.
CHUNK = 256


def silent(step: str, done: int, total: int) -> None:
    """A progress callback that says nothing."""


@dataclass(frozen=True, eq=False)
class Original:
    """A donor as baselines see it.

    Attributes:
        graph: the whole donor, inputs to logits of its own classes.
        classes: what its logits stand for.
        inputs: samples of all its classes, (m, ...), for methods that need no labels; None: those of the order.
    """

    name: str
    graph: ModelGraph
    classes: tuple[str, ...]
    inputs: Tensor | None = None


@dataclass(frozen=True)
class Budget:
    """How much a baseline may train; the first limit that is reached ends it.

    Attributes:
        steps: updates of weights in all; None takes as many as the method's own settings say.
        seconds: after which no further update begins; None sets no limit. With one, results depend on the machine.
    """

    steps: int | None = None
    seconds: float | None = None


#: As many steps as a method's own settings say.
UNLIMITED = Budget()


@dataclass(frozen=True, eq=False)
class Given:
    """An order as a baseline gets it.

    Attributes:
        donors: each provides at least one of the classes.
        classes: the wanted ones, in order.
        inputs: samples of the order, shape (n, ...), as the donors' graphs read them.
        labels: 0..q-1, shape (n,): places in `classes`.
        seed: of everything that is drawn.
    """

    donors: tuple[Original, ...]
    classes: tuple[str, ...]
    inputs: Tensor
    labels: Tensor
    seed: int = 0
    budget: Budget = UNLIMITED
    progress: Progress = silent

    def __post_init__(self) -> None:
        if self.inputs.ndim < 1 or self.labels.shape != self.inputs.shape[:1]:
            raise ShapeError(
                "inputs (n, ...) and one label for each were asked for; got "
                f"{tuple(self.inputs.shape)} and {tuple(self.labels.shape)}"
            )
        problems = []
        if not self.donors:
            problems.append("a baseline needs at least one donor, got none")
        present = set(self.labels.tolist())
        missing = [cls for place, cls in enumerate(self.classes) if place not in present]
        if missing:
            problems.append(f"no samples of {', '.join(missing)}; give at least one of each class")
        if present - set(range(len(self.classes))):
            problems.append(f"labels must lie in 0..{len(self.classes) - 1}, got {sorted(present)}")
        for name, limit in (("steps", self.budget.steps), ("seconds", self.budget.seconds)):
            if limit is not None and limit <= 0:
                problems.append(f"budget.{name} must be above 0, got {limit}")
        if problems:
            raise RequestError(problems[0], problems=problems)


@dataclass(frozen=True, eq=False)
class Trained:
    """What a baseline gives.

    Attributes:
        scores: inputs (m, ...) to scores of the classes (m, q); the largest one is the prediction.
        params: of everything that runs to get the scores.
        seconds: that building it took, by the clock.
        steps: updates of weights that were done.
        note: what it is, and what ended it early.
        graph: the model that gives the scores.
        left_out: classes said of the samples (n,) when one of each class was left out, -1 where never; None where only
            training again without them can tell.
    """

    scores: Callable[[Tensor], Tensor]
    params: int
    seconds: float
    steps: int
    note: str
    graph: ModelGraph
    left_out: Tensor | None = None

    def predict(self, inputs: Tensor) -> Tensor:
        """The class of each input, shape (m,)."""
        return self.scores(inputs).argmax(1)


#: One alternative to slicing and packing, from what is given to what it gives.
Baseline = Callable[[Given], Trained]


@dataclass
class Meter:
    """Counts the updates and seconds of one baseline against its budget.

    Attributes:
        total: updates that it means to do.
    """

    budget: Budget
    total: int
    progress: Progress = silent
    steps: int = 0
    begun: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.begun

    @property
    def spent(self) -> str | None:
        """Which limit is reached; None where another update may begin."""
        if self.budget.steps is not None and self.steps >= self.budget.steps:
            return f"the budget of {self.budget.steps} steps"
        if self.budget.seconds is not None and self.seconds >= self.budget.seconds:
            return f"the budget of {self.budget.seconds:g} s"
        return None

    def took(self, what: str) -> None:
        """Count one update."""
        self.steps += 1
        self.progress(what, self.steps, self.total)


def shared_out(steps: Sequence[int], total: int | None) -> list[int]:
    """Updates of each part of a training, all parts stretched or cut alike so that together they are that many.

    Args:
        total: None leaves them as they are.
    """
    if total is None:
        return list(steps)
    limit, total = total, sum(steps)
    exact = [part * limit / total for part in steps]
    shares = [int(part) for part in exact]
    rest = sorted(range(len(steps)), key=lambda place: (shares[place] - exact[place], place))
    for place in rest[: limit - sum(shares)]:
        shares[place] += 1
    return shares


def run(graph: ModelGraph, inputs: Tensor) -> Tensor:
    """The graph's single output on any number of inputs."""
    return torch.cat([torch.as_tensor(graph(part)) for part in inputs.split(CHUNK)])


def count_params(graph: ModelGraph) -> int:
    """Trainable parameters of a graph."""
    return sum(graph.tensors[name].numel() for name in graph.parameters)
