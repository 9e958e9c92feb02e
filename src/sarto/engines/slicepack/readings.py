"""What a donor's readers read on the few samples: one pass, second moments for every class at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sarto.engines.slicepack.readers import Reader, readers_of
from sarto.engines.slicepack.rows import term_rows, terms_of, units_of
from sarto.engines.slicepack.settings import CHUNK
from sarto.engines.slicepack.walk import walk
from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.graph.expressions import units_in
from sarto.training import class_grams

#: A reader by its name, the term of the axis that it reads, and a channel group there.
Read = tuple[str, int, str]


@dataclass(frozen=True, eq=False)
class Readings:
    """A donor on its few samples.

    Attributes:
        graph: the whole donor, normalisation in front.
        inputs: the samples, (n, ...) as the graph takes them; labels: (n,) in 0..n_classes-1.
        readers: every linear operator that reads sliceable units, in order.
        rows: reader -> what it reads, (n, axis, positions); about `POSITIONS` of the positions.
        grams: read -> second moment of the group's units there, by class, float64 (classes, u, u).
    """

    graph: ModelGraph
    inputs: Tensor
    labels: Tensor
    n_classes: int
    readers: tuple[Reader, ...]
    rows: Mapping[str, Tensor]
    grams: Mapping[Read, Tensor]

    @property
    def reader(self) -> Mapping[str, Reader]:
        """The readers by name."""
        return {reader.name: reader for reader in self.readers}

    def units(self, read: Read) -> Tensor:
        """The units of one read, shape (n, units, ...)."""
        name, place, group = read
        expr = self.reader[name].consumption.expr
        rows = term_rows(self.rows[name], expr, place, {})
        return units_of(rows, 1, list(terms_of(expr))[place], group, {})


def read_donor(graph: ModelGraph, inputs: Tensor, labels: Tensor, n_classes: int) -> Readings:
    """One pass of the samples; serves the slices of all classes.

    A class may have a single sample: its moments are then those of that sample's positions, and the ridge and the
    other classes say the rest.

    Args:
        inputs: samples as the graph takes them, shape (n, ...).
        labels: class of each sample, shape (n,).
        n_classes: classes of the donor.

    Raises:
        RequestError: a class without samples, labels that the donor does not have, or not one label a sample; all
            problems at once.
    """
    _check(inputs, labels, n_classes)
    readers = readers_of(graph)
    found: dict[str, list[Tensor]] = {reader.name: [] for reader in readers}

    def see(reader: Reader, rows: Tensor | None) -> None:
        if rows is not None:
            found[reader.name].append(rows.clone())

    for start in range(0, len(inputs), CHUNK):
        walk(graph, graph, inputs[start : start + CHUNK], readers, see)
    rows = {name: torch.cat(found.pop(name)) for name in list(found)}
    readings = Readings(graph, inputs, labels, n_classes, readers, rows, {})
    grams = {read: class_grams(readings.units(read), labels, n_classes) for read in reads_of(readers)}
    return Readings(graph, inputs, labels, n_classes, readers, rows, grams)


def part_of(readings: Readings, chosen: Tensor) -> Readings:
    """The same donor on some of its samples (indices), without another pass.

    Raises:
        RequestError: a class is left without samples.
    """
    inputs, labels = readings.inputs[chosen], readings.labels[chosen]
    _check(inputs, labels, readings.n_classes)
    rows = {name: found[chosen] for name, found in readings.rows.items()}
    part = replace(readings, inputs=inputs, labels=labels, rows=rows, grams={})
    grams = {read: class_grams(part.units(read), labels, part.n_classes) for read in reads_of(part.readers)}
    return replace(part, grams=grams)


def reads_of(readers: tuple[Reader, ...]) -> tuple[Read, ...]:
    """Every (reader, term, channel group)."""
    return tuple(
        (reader.name, place, group)
        for reader in readers
        for place, term in enumerate(terms_of(reader.consumption.expr))
        for group in sorted(units_in(term))
    )


def reader_weights(readings: Readings, read: Read) -> Tensor:
    """How strongly a reader reads each unit: squared norm of the weights on it, scaled to mean 1, shape (units,)."""
    name, place, group = read
    reader = readings.reader[name]
    if reader.weight is None or not reader.repairable:
        return torch.ones(readings.graph.analysis.groups[group].size, dtype=torch.float64)
    weight = readings.graph.tensors[reader.weight].to(torch.float64)
    expr = reader.consumption.expr
    mine = term_rows(weight, expr, place, {})
    units = units_of(mine, 1, list(terms_of(expr))[place], group, {})
    norms = units.square().transpose(0, 1).flatten(1).sum(1)
    return norms / norms.mean().clamp_min(torch.finfo(torch.float64).tiny)


def _check(inputs: Tensor, labels: Tensor, n_classes: int) -> None:
    problems = []
    if labels.shape != inputs.shape[:1]:
        problems.append(f"{len(inputs)} samples need as many labels, got shape {tuple(labels.shape)}")
    present = set(labels.flatten().tolist())
    strange = sorted(present - set(range(n_classes)))
    if strange:
        problems.append(
            f"samples are labelled {strange[:5]}, the donor has classes 0..{n_classes - 1}; leave these samples out, "
            "or give the classes in the order of the donor's outputs"
        )
    missing = sorted(set(range(n_classes)) - present)
    if missing:
        problems.append(f"every class of the donor needs at least one sample; classes {missing} have none")
    if problems:
        raise RequestError(problems[0], problems=problems)
