"""CA-MKD: one student that learns from all donors, sample by sample more from those that are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.engines.baselines.descent import Views, descend, quick
from sarto.engines.baselines.given import Given, Meter, Trained, count_params, run
from sarto.engines.baselines.probing import Probed, probe_donor
from sarto.engines.baselines.settings import CA_MKD, HINT_RIDGE, CaMkdSettings
from sarto.errors import GraphError
from sarto.graph import ModelGraph, block, features, main_cuts, with_state
from sarto.training import draw_weights


def ca_mkd(given: Given, settings: CaMkdSettings = CA_MKD) -> Trained:
    """A single model of one donor's size, distilled from all donors on the order's samples.

    The student is the donor whose probe does best on left-out samples.

    Reference:
        Zhang, Chen, Wang: Confidence-Aware Multi-Teacher Knowledge Distillation, ICASSP 2022, equations (1)-(8).
    Differs:
        The paper's teachers all know the student's classes. Donors know different ones, so each teacher is its donor
        under the ridge head of packs on the order's samples, calibrated on left-out ones: its cross entropy says how
        sure it is of the right class. Hints pass a 1x1 convolution; maps of other sizes are averaged to the teacher's.
        Weights of hints carry no gradient. One teacher alone has weight 1. Samples are mirrored, not cropped: so each
        donor runs twice in all. From a donor's weights the convolutions start at the best linear map, Adam takes small
        steps and batch norm stays as it is.
    """
    meter = Meter(given.budget, given.budget.steps or settings.steps, given.progress)
    probes = [probe_donor(donor, given) for donor in given.donors]
    best = max(probes, key=lambda probed: probed.accuracy)
    generator = torch.Generator().manual_seed(given.seed)
    views = Views.of(given.inputs)
    student = _Student.of(best, settings, generator)
    teachers = _teachers(probes, student, views, settings.start == "fresh", generator)
    trained = [*student.module.parameters(), *(p for t in teachers for p in t.project.parameters())]
    if settings.start == "fresh":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(
            trained,
            lr=settings.fresh_rate,
            momentum=settings.momentum,
            weight_decay=settings.decay,
            nesterov=settings.momentum > 0,
        )
    else:
        optimiser = torch.optim.Adam(trained, lr=settings.rate)
    ended = descend(
        views,
        lambda at: _loss(student, teachers, views, given.labels, at, settings),
        optimiser,
        steps=meter.total,
        batch=settings.batch,
        generator=generator,
        meter=meter,
        what="CA-MKD",
        drops=settings.drops if settings.start == "fresh" else (),
    )
    graph = student.trained()
    note = f"CA-MKD: {len(probes)} teachers, student {best.donor.name} ({settings.start} start), {meter.steps} steps"
    note += f"; {ended}" if ended else ""
    return Trained(
        lambda inputs: run(graph, inputs), count_params(graph), meter.seconds, meter.steps, note, graph
    )


def confidence_weights(losses: Tensor) -> Tensor:
    """How much each sample trusts each teacher, shape (teachers, n): 1 in all over the teachers.

    Args:
        losses: cross entropy of each teacher on each sample, shape (teachers, n).

    Reference: CA-MKD, equations (2) and (6): (1 - softmax of the losses) / (teachers - 1).
    """
    if len(losses) == 1:
        return torch.ones_like(losses)
    return (1.0 - torch.softmax(losses, 0)) / (len(losses) - 1)


def teaching_loss(student: Tensor, teachers: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's softened scores from each teacher's, weighted; mean over teachers and samples.

    Args:
        student: scores, shape (n, q).
        teachers: scores, shape (teachers, n, q).
        weights: shape (teachers, n).

    Reference: CA-MKD, equation (3). As in the authors' code the divergence counts temperature squared times.
    """
    said = F.log_softmax(student / temperature, -1)
    wanted = F.log_softmax(teachers / temperature, -1)
    apart = (wanted.exp() * (wanted - said.unsqueeze(0))).sum(-1)
    return (weights * apart).mean() * temperature**2


def hint_loss(projected: Sequence[Tensor], wanted: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Squared distance of projected maps from the teachers', weighted; mean over teachers, samples and positions.

    Args:
        projected: of the student, one of shape (n, ...) for each teacher.
        wanted: of the teachers, of the same shapes.
        weights: shape (teachers, n).

    Reference: CA-MKD, equation (7).
    """
    pairs = zip(projected, wanted, strict=True)
    apart = torch.stack([(mine - theirs).square().flatten(1).mean(1) for mine, theirs in pairs])
    return (weights * apart).mean()


@dataclass(frozen=True, eq=False)
class _Student:
    """graph: inputs to (hint, scores); module: what trains."""

    graph: ModelGraph
    module: nn.Module
    output: str
    layout: str
    channels: int

    @classmethod
    def of(cls, probed: Probed, settings: CaMkdSettings, generator: torch.Generator) -> _Student:
        graph = probed.graph()
        value, layout = hint_value(graph)
        both = replace(graph, outputs=(value, graph.outputs[0]))
        module = both.module(train=True)
        if settings.start == "fresh":
            draw_weights(module, generator)
        else:
            module.eval()
        channels = graph.node(value).shape[1]
        if not isinstance(channels, int):
            raise GraphError(f"the hint {value!r} has no channels on axis 1", where=value)
        return cls(both, module, graph.outputs[0], layout, channels)

    def trained(self) -> ModelGraph:
        found = with_state(self.graph, self.module)
        return block(found, end=self.output)


@dataclass(frozen=True, eq=False)
class _Teacher:
    """scores (views, n, q) and hints (views, n, ...) of every view; tail: from a hint to scores."""

    scores: Tensor
    hints: Tensor
    project: nn.Module
    tail: Callable[[Tensor], Tensor]


def hint_value(graph: ModelGraph) -> tuple[str, str]:
    """The last map of a classifier, else the features that its last layer reads; its name and layout."""
    maps = [cut for cut in main_cuts(graph) if cut.layout == "map" and len(cut.shape) == 4]
    return (maps[-1].value, "map") if maps else (features(graph).value, "vector")


def _teachers(
    probes: Sequence[Probed], student: _Student, views: Views, fresh: bool, generator: torch.Generator
) -> list[_Teacher]:
    found = []
    mine = views.said(block(student.graph, end=student.graph.outputs[0]).module())
    for probed in probes:
        graph = probed.graph()
        value, layout = hint_value(graph)
        if layout != student.layout:
            value, layout = features(graph).value, "vector"
        tail = block(graph, start=value).module()
        hints = views.said(block(graph, end=value).module())
        scores = torch.stack([tail(view) for view in hints])
        size = (int(hints.shape[3]), int(hints.shape[4])) if hints.ndim == 5 else None
        project = _Projection(student.channels, int(hints.shape[2]), size)
        if fresh:
            draw_weights(project, generator)
        else:
            project.start(mine.flatten(0, 1), hints.flatten(0, 1))
        found.append(_Teacher(scores, hints, project.to(hints.device), tail))
    return found


class _Projection(nn.Module):
    """The student's hint with a teacher's channels and size."""

    def __init__(self, channels: int, wanted: int, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.size = size
        self.mix = nn.Conv2d(channels, wanted, 1) if size is not None else nn.Linear(channels, wanted)

    def forward(self, hint: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.sized(hint))
        return mixed

    def sized(self, hint: Tensor) -> Tensor:
        """The hint in the teacher's size."""
        if self.size is None:
            return hint.mean((2, 3)) if hint.ndim == 4 else hint
        return hint if hint.shape[2:] == self.size else F.adaptive_avg_pool2d(hint, self.size)

    def start(self, hint: Tensor, wanted: Tensor) -> None:
        """Begin with the best linear map of these hints, so that the student's own weights are not torn first."""
        given, aim = (x.movedim(1, -1).flatten(0, -2).double() for x in (self.sized(hint), wanted))
        centre, middle = given.mean(0), aim.mean(0)
        gram = (given - centre).T @ (given - centre)
        ridge = HINT_RIDGE * gram.diagonal().mean().clamp_min(1e-12)
        cross = (given - centre).T @ (aim - middle)
        weight = torch.linalg.solve(
            gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross
        ).T
        with torch.no_grad():
            self.mix.weight.copy_(weight.reshape(self.mix.weight.shape))
            if self.mix.bias is not None:
                self.mix.bias.copy_(middle - weight @ centre)


def _loss(
    student: _Student,
    teachers: Sequence[_Teacher],
    views: Views,
    labels: Tensor,
    at: tuple[Tensor, Tensor],
    settings: CaMkdSettings,
) -> Tensor:
    """Equation (8) on a batch."""
    truth = labels[at[1]]
    hint, scores = quick(student.module, views.inputs[at])
    taught = torch.stack([teacher.scores[at] for teacher in teachers])
    weights = confidence_weights(
        torch.stack([F.cross_entropy(one, truth, reduction="none") for one in taught])
    )
    loss = F.cross_entropy(scores, truth) + settings.alpha * teaching_loss(
        scores, taught, weights, settings.temperature
    )
    projected = [teacher.project(hint) for teacher in teachers]
    with torch.no_grad():
        read = [teacher.tail(mine) for teacher, mine in zip(teachers, projected, strict=True)]
        trust = confidence_weights(
            torch.stack([F.cross_entropy(one, truth, reduction="none") for one in read])
        )
    return loss + settings.beta * hint_loss(projected, [teacher.hints[at] for teacher in teachers], trust)
