"""Making a profile: blocks first, then the subnets that tell most, then memory; fitted and checked for noise."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib import metadata
from pathlib import Path

import numpy as np

from sarto.devices.agent.machine import Machine, this_machine
from sarto.devices.count import count
from sarto.devices.memory import peak_bytes
from sarto.devices.profiling.blocks import Block, blocks
from sarto.devices.profiling.design import design
from sarto.devices.profiling.features import Terms, skeleton, terms_of
from sarto.devices.profiling.fit import BackboneFit, Fitted, fit_backbone
from sarto.devices.profiling.generic import KindFit, fit_kinds, places_of
from sarto.devices.profiling.memory import Weigher, fit_memory
from sarto.devices.profiling.packs import (
    SHARE,
    can_be_packed,
    fit_packs,
    pack_counts,
    pack_graph,
    predicted_ms,
)
from sarto.devices.profiling.run import (
    SECONDS,
    Progress,
    Wanted,
    measure_all,
    noise_notes,
    noise_of,
    with_repeats,
)
from sarto.devices.profiling.running import Opener
from sarto.devices.profiling.sizes import Counts, Floats
from sarto.devices.profiling.steps import WIDTHS, off_step_ratio, step_blocks, step_of
from sarto.errors import GraphError, RequestError
from sarto.graph import ModelGraph, graph_hash, slice
from sarto.graph.selection import leading, uniform_counts
from sarto.types import Device
from sarto.types.profile import (
    BackboneModel,
    DeviceProfile,
    KindModel,
    MeasuredRow,
    MemoryRow,
    ProfiledDevice,
    Residuals,
)

#: Subnets of a backbone that are measured.
SUBNETS = 64
#: Block that other blocks are compared with; subnets are compared with their backbone at half of its units.
REFERENCE = "convolution-32x16x6"
#: Blocks whose memory is measured: little of both, many weights, many activations.
WEIGHED = ("convolution-8x32x6", "linear-1024x3", "activation-64x32", "convolution-48x28x3")
#: Significant digits of a number in a profile.
DIGITS = 7


@dataclass(frozen=True)
class Backbone:
    """A model whose subnets are measured.

    Attributes:
        written: writes the file of a subnet for the device, where that is quicker than writing its graph; it must stay
            until the second chunk after it. A reference is loaded once, at the start.
        packed: the same for subnets side by side.
    """

    name: str
    graph: ModelGraph
    written: Callable[[Counts], Path] | None = None
    packed: Callable[[Sequence[Counts]], Path] | None = None

    def at(self, counts: Counts) -> ModelGraph:
        """The subnet that keeps the first so many units of each group."""
        return slice(self.graph, leading(counts)) if counts else self.graph

    def measurable(self, counts: Counts) -> ModelGraph | Path:
        """The subnet as it is measured."""
        return self.at(counts) if self.written is None else self.written(counts)

    def pack(self, parts: Sequence[Counts]) -> ModelGraph | Path:
        """Subnets side by side under one head, as they are measured; exported by itself where no file can be joined."""
        if self.packed is not None:
            with suppress(GraphError):
                return self.packed(parts)
        return pack_graph(self.graph, parts)

    @cached_property
    def graph_hash(self) -> str:
        """Hash of its structure with all sizes; weights change no measurement."""
        return graph_hash(self.graph, weights=False)

    def half(self) -> ModelGraph | Path:
        """The reference of its subnets: half of the units, so that it runs about as long as they do."""
        return self.measurable(uniform_counts(self.graph, 0.5))


def make_profile(
    name: str,
    device: Device,
    version: str,
    opener: Opener,
    *,
    machine: Machine | None = None,
    backbones: Sequence[Backbone] = (),
    n_subnets: int = SUBNETS,
    built_in: Sequence[Block] | None = None,
    onto: DeviceProfile | None = None,
    weigh: Weigher | None = None,
    journal: Path | None = None,
    seconds: float = SECONDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> DeviceProfile:
    """A measured and fitted profile.

    Args:
        version: of the runtime.
        opener: loads a graph on the device.
        machine: where it is measured; None is this one.
        backbones: models whose subnets are measured; later profiles of the same name replace earlier ones.
        n_subnets: of each backbone; for every eight of them three packs of subnets are measured too.
        built_in: blocks that say what any graph takes; None takes all.
        onto: a profile of the same device that is added to. What it holds is not measured again: its blocks, backbones
            with as many subnets, memory. Where it holds everything, it is given back as it is. What it holds of another
            network under a backbone's name is replaced, and its notes say so.
        weigh: bytes that a fresh process grows by when it loads and runs a graph; None measures no memory.
        journal: a file of finished measurements; a later call with the same file goes on from there.
        seconds: how long each model is measured.

    Raises:
        RequestError: the profile to add to is of another device, the journal does not fit (another device, or another
            network under a backbone's name), or a model can't run.
    """
    described, told = describe(device, version, machine), tuple[str, ...]()
    if onto is not None:
        check_same(onto.device, described)
        described = onto.device  # begun when its first measurement was
        backbones = [one for one in backbones if not is_measured(onto, one, n_subnets)]
        told = tuple(
            f"another network was called {one.name!r} in this profile; what was measured of it is replaced"
            for one in backbones
            if is_another(onto, one)
        )
        if not backbones and (weigh is None or onto.memory is not None):
            return onto
    with tempfile.TemporaryDirectory() as folder:
        notebook = journal or Path(folder, "journal")
        standard = next(block for block in blocks() if block.name == REFERENCE)
        about = {
            "device": described.model_dump(mode="json", exclude={"started"}),
            "reference": REFERENCE,
            "seconds": seconds,
        }

        def measured(wanted: Sequence[Wanted], backbone: Backbone | None = None) -> tuple[MeasuredRow, ...]:
            reference = standard.graph() if backbone is None else backbone.half()
            return measure_all(
                wanted, opener, reference, journal=notebook, about=about, seconds=seconds, progress=progress
            )

        rows = list(onto.rows) if onto is not None else []
        step, off_step = (onto.unit_step, onto.off_step_ratio) if onto is not None else (1, 1.0)
        if onto is None:
            chosen = blocks() if built_in is None else tuple(built_in)
            fitted, found = _kinds(chosen, device.batch, measured, repeat=not backbones)
            kinds = _kind_model(fitted)
            stepping = measured(
                [Wanted("block", block.name, {}, cache(block.graph)) for block in step_blocks()]
            )
            compared = dict(zip(WIDTHS, _times(stepping).tolist(), strict=True))
            step = step_of(compared)
            off_step = off_step_ratio(compared, step)
            rows = [*rows, *found, *stepping]
        else:
            kinds = onto.kinds
        models = {model.backbone: model for model in (onto.backbones if onto is not None else ())}
        for backbone in backbones:
            terms = terms_of(backbone.graph, batch=device.batch)
            base = np.array(kinds.weights)[places_of(terms, kinds.names)]
            found = measured(_subnets(backbone, terms, base, n_subnets, seed, step), backbone)
            fitted_to = fit_rows(backbone.name, terms, found, base, step=step)
            packed: tuple[MeasuredRow, ...] = ()
            if can_be_packed(backbone.graph):
                packed = measured(_packs(backbone, terms, round(SHARE * n_subnets), seed, step), backbone)
                parts = [row.parts for row in packed]
                alone = predicted_ms(
                    backbone.graph, terms, fitted_to, kinds, parts, batch=device.batch, step=step
                )
                together = fit_packs(alone, [len(part) for part in parts], _times(packed))
                fitted_to = fitted_to.replace(packs=together)
            fitted_to = fitted_to.replace(graph_hash=backbone.graph_hash)
            rows = [row for row in rows if row.what == "block" or row.model != backbone.name]
            rows += [*found, *packed]
            models[backbone.name] = fitted_to
        noise = noise_of(rows)
        weighed = list(onto.memory_rows) if onto is not None else []
        if weigh is not None:
            weighed = _weighed(weigh, backbones, device, progress, weighed)
        return DeviceProfile(
            name=name,
            device=described,
            rows=tuple(rows),
            memory_rows=tuple(weighed),
            noise=noise,
            kinds=kinds,
            backbones=tuple(models.values()),
            memory=fit_memory(weighed) if weighed else None,
            notes=(*noise_notes(noise), *told),
            unit_step=step,
            off_step_ratio=off_step,
        )


def is_another(profile: DeviceProfile, backbone: Backbone) -> bool:
    """Whether a profile holds another network under a backbone's name; older ones do not say which they hold."""
    known = next((model.graph_hash for model in profile.backbones if model.backbone == backbone.name), None)
    return known is not None and known != backbone.graph_hash


def is_measured(profile: DeviceProfile, backbone: Backbone, n_subnets: int) -> bool:
    """Whether a profile holds so many subnets of a backbone, and packs where it can be packed."""
    known = profile.backbone(skeleton(backbone.graph))
    if known is None or known.backbone != backbone.name or is_another(profile, backbone):
        return False
    own = [
        row for row in profile.rows if row.model == backbone.name and row.what == "subnet" and not row.repeat
    ]
    packed = known.packs is not None or round(SHARE * n_subnets) < 2 or not can_be_packed(backbone.graph)
    return len(own) >= n_subnets and packed


def fit_rows(
    name: str, terms: Terms, rows: Sequence[MeasuredRow], base: Floats, *, step: int = 1
) -> BackboneModel:
    """What measured subnets say of a backbone.

    Args:
        base: milliseconds for one of each term, as far as is known without them, shape (terms,).
        step: unit counts are rounded up to multiples of it.

    Raises:
        RequestError: there are too few rows, or one names a group that the backbone has not.
    """
    counts = terms.table.rows([row.counts for row in rows])
    return backbone_model(name, terms, fit_backbone(terms, counts, _times(rows), base, step=step))


def backbone_model(name: str, terms: Terms, fit: BackboneFit) -> BackboneModel:
    """A fit as a value."""
    return BackboneModel(
        backbone=name,
        skeleton=terms.skeleton,
        base_ms=_numbers(fit.base),
        column=tuple(int(place) for place in fit.column),
        weights=_numbers(fit.fitted.weights),
        vector_width=fit.width,
        pull=fit.pull,
        residuals=_residuals(fit.fitted),
    )


def describe(device: Device, version: str, machine: Machine | None = None) -> ProfiledDevice:
    """The machine that this runs on, or another one, as a device."""
    there = machine or this_machine()
    return ProfiledDevice(
        processor=there.processor,
        cores=there.cores,
        memory_bytes=there.memory_bytes or None,
        system=there.system,
        runtime=device.runtime,
        version=version,
        threads=device.threads,
        batch=device.batch,
        precision=device.precision,
        sarto=metadata.version("sarto"),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def check_same(known: ProfiledDevice, found: ProfiledDevice) -> None:
    """Refuse to mix measurements of two devices.

    Raises:
        RequestError: names all that differs.
    """
    problems = [
        f"{field}: the profile has {getattr(known, field)!r}, here it is {getattr(found, field)!r}"
        for field in ("processor", "runtime", "version", "threads", "batch", "precision")
        if getattr(known, field) != getattr(found, field)
    ]
    if problems:
        raise RequestError(
            "the profile is of another device; measure a profile of its own", problems=problems
        )


def _kinds(
    chosen: Sequence[Block],
    batch: int,
    measured: Callable[[Sequence[Wanted]], tuple[MeasuredRow, ...]],
    *,
    repeat: bool,
) -> tuple[KindFit, tuple[MeasuredRow, ...]]:
    graphs = {block.name: cache(block.graph) for block in chosen}
    wanted = [Wanted("block", name, {}, graph) for name, graph in graphs.items()]
    rows = measured(with_repeats(wanted) if repeat else wanted)
    known = {block.name: (block.family, terms_of(graphs[block.name](), batch=batch)) for block in chosen}
    families = [known[row.model][0] for row in rows]
    return fit_kinds([known[row.model][1] for row in rows], _times(rows), families), rows


def _subnets(
    backbone: Backbone, terms: Terms, base: Floats, n: int, seed: int, step: int
) -> tuple[Wanted, ...]:
    chosen = [
        {
            group: int(kept)
            for (group, size), kept in zip(terms.groups.items(), row, strict=True)
            if kept != size
        }
        for row in design(terms, n, base=base, seed=seed, step=_fitting(terms, step))
    ]
    return with_repeats(
        [
            Wanted(
                "subnet",
                backbone.name,
                counts,
                partial(backbone.measurable, counts),
                graph_hash=backbone.graph_hash,
            )
            for counts in chosen
        ]
    )


def _packs(backbone: Backbone, terms: Terms, n: int, seed: int, step: int) -> tuple[Wanted, ...]:
    return tuple(
        Wanted(
            "pack",
            backbone.name,
            {},
            partial(backbone.pack, parts),
            parts=parts,
            graph_hash=backbone.graph_hash,
        )
        for parts in pack_counts(terms, n, seed=seed, step=_fitting(terms, step))
    )


def _fitting(terms: Terms, step: int) -> int:
    """The step, or less for a small model, which has no two counts at whole steps."""
    while step > 1 and max(terms.groups.values()) < 2 * step:
        step //= 2
    return step


def _weighed(
    weigh: Weigher,
    backbones: Sequence[Backbone],
    device: Device,
    progress: Progress | None,
    known: Sequence[MemoryRow],
) -> list[MemoryRow]:
    """Rows of some blocks and of each backbone; known ones stay, those of backbones that are measured anew do not."""
    rows = [row for row in known if row.model not in {backbone.name for backbone in backbones}]
    weighed = {row.model for row in rows}
    chosen: list[tuple[str, Counts, Callable[[], ModelGraph]]] = [
        (block.name, {}, block.graph)
        for block in blocks()
        if block.name in WEIGHED and block.name not in weighed
    ]
    for backbone in backbones:
        both: tuple[Counts, ...] = ({}, uniform_counts(backbone.graph, 0.5))
        chosen += [(backbone.name, counts, partial(backbone.at, counts)) for counts in both]
    for place, (name, counts, build) in enumerate(chosen):
        if progress is not None:
            progress("memory", place, len(chosen))
        graph = build()
        rows.append(
            MemoryRow(
                model=name,
                counts=counts,
                size_bytes=count(graph).size_bytes,
                activation_bytes=peak_bytes(graph, batch=device.batch),
                measured_bytes=weigh(graph),
            )
        )
    return rows


def _kind_model(fit: KindFit) -> KindModel:
    return KindModel(
        names=fit.names,
        weights=_numbers(fit.fitted.weights),
        vector_width=fit.width,
        residuals=_residuals(fit.fitted),
    )


def _residuals(fitted: Fitted) -> Residuals:
    return Residuals(
        folds=tuple(_numbers(fold) for fold in fitted.folds),
        part=tuple(int(part) for part in fitted.part),
        shares=_numbers(fitted.residuals),
    )


def _times(rows: Sequence[MeasuredRow]) -> Floats:
    return np.array([row.latency_ms for row in rows], float)


def _numbers(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
