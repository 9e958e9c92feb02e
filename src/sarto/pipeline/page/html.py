"""The page of a report: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sarto.pipeline.page import wording
from sarto.pipeline.page.figures import accuracy_figure
from sarto.types import Confusion, Report

#: Confusion tables with more classes than this show colours without numbers.
MOST_NUMBERED = 24
_PART_COLOURS = 8


@dataclass(frozen=True)
class CostRow:
    """A cost number as the page shows it; `share` is the part of the limit that is used."""

    name: str
    limit: str
    predicted: str
    measured: str
    interval: str
    error: str
    share: float | None
    ok: bool | None


@dataclass(frozen=True)
class PartRow:
    """Parameters of one part of the model; `colour` is a place in the page's palette."""

    name: str
    classes: str
    params: int
    share: float
    colour: int


@dataclass(frozen=True)
class Strip:
    """A donor from its first layer to its last as the page draws it.

    Attributes:
        pieces: (share of its FLOPs, place in the page's palette or None where it is not used, what it is), in order.
    """

    name: str
    pieces: tuple[tuple[float, int | None, str], ...]


def render_page(report: Report) -> str:
    """The report as one HTML page, without scripts and without anything loaded from elsewhere."""
    template = _environment().get_template("report.html.j2")
    rows = report.rows
    return template.render(
        report=report,
        title=wording.headline(report),
        own=wording.OWN[report.requirement.labelled_by],
        on_own=wording.ON_OWN[report.requirement.labelled_by],
        agreed=report.requirement.labelled_by == "donors",
        bases=wording.BASES[report.requirement.labelled_by],
        call=wording.CALLS[report.reads],
        onnx_reads=wording.ONNX_READS[report.reads],
        costs=list(_costs(report)),
        figure=Markup(accuracy_figure(rows, report.request.budget.params)),
        not_drawn=[row.name for row in rows if row.accuracy_loto is None and row.accuracy_heldout is None],
        has_heldout=any(row.accuracy_heldout is not None for row in rows),
        has_latency=any(row.cost is not None and row.cost.latency_ms is not None for row in rows),
        parts=list(_parts(report)),
        strips=list(_strips(report)),
        confusion=_confusion(report.confusion) if report.confusion is not None else None,
        order=list(_order(report)),
        plan_text=report.plan.to_yaml(),
        levels=sorted({row.interval.level for row in rows if row.interval is not None}),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sarto.pipeline.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("percent", "span", "points", "count", "compact", "number", "short", "listed")
    environment.filters.update({name: getattr(wording, name) for name in names})
    environment.globals.update(amount=wording.amount, roles=wording.ROLES)
    return environment


def _costs(report: Report) -> Iterator[CostRow]:
    measured = report.measured
    for line in report.cost_lines():
        share = line.measured / line.budget if line.measured is not None and line.budget else None
        error, interval = "", ""
        if line.foretold and line.measured is not None:
            off = line.measured / line.foretold - 1
            error = "exact" if off == 0 else f"{100 * off:+.1f}%".replace("-", "\N{MINUS SIGN}")
        if (
            line.name == "latency_ms"
            and measured.latency_low_ms is not None
            and measured.latency_high_ms is not None
        ):
            interval = f"{measured.latency_low_ms:.3g} to {measured.latency_high_ms:.3g}"
        yield CostRow(
            name=wording.cost_name(line.name, report.reads),
            limit=wording.amount(line.name, line.budget),
            predicted=wording.predicted(line),
            measured=wording.amount(line.name, line.measured),
            interval=interval,
            error=error,
            share=share,
            ok=None if share is None else share <= 1,
        )


def _parts(report: Report) -> Iterator[PartRow]:
    total = sum(part.params for part in report.where_params) or 1
    for place, part in enumerate(report.where_params):
        colour = place % _PART_COLOURS
        yield PartRow(part.name, ", ".join(part.classes), part.params, part.params / total, colour)


def _strips(report: Report) -> Iterator[Strip]:
    """Each donor of a chain of blocks, with the blocks that were taken from it in their colours."""
    names = {donor.learnware: donor.name for donor in report.lineage}
    blocks = [
        (part, part.span, place) for place, part in enumerate(report.where_params) if part.span is not None
    ]
    for learnware in dict.fromkeys(part.learnware for part, _, _ in blocks):
        own = sorted((span, place, part.name) for part, span, place in blocks if part.learnware == learnware)
        pieces, at = list[tuple[float, int | None, str]](), 0.0
        for (start, end), place, name in own:
            if start > at:
                pieces.append((start - at, None, "not used"))
            # Blocks of one donor may overlap; what is drawn already is not drawn again.
            pieces.append((max(end - max(start, at), 0.0), place % _PART_COLOURS, name))
            at = max(at, end)
        if at < 1.0:
            pieces.append((1.0 - at, None, "not used"))
        yield Strip(names.get(learnware or "", "donor"), tuple(pieces))


def _confusion(table: Confusion) -> Mapping[str, Any]:
    rows = []
    for cls, counts in zip(table.classes, table.counts, strict=True):
        total = sum(counts)
        rows.append((cls, total, [(count, count / total if total else 0.0) for count in counts]))
    return {"rows": rows, "basis": table.basis, "numbered": len(rows) <= MOST_NUMBERED}


def _order(report: Report) -> Iterator[tuple[str, str]]:
    request = report.request
    device = request.device
    if request.name:
        yield "name", request.name
    yield ("classes" if request.task.classes else "tasks"), ", ".join(request.task.title)
    if report.requirement.new:
        yield "classes that no stocked model knows", ", ".join(report.requirement.new)
    yield "device", f"{device.runtime}, {device.threads} thread(s), batch {device.batch}"
    held = report.requirement.n_samples
    if held or request.samples:
        yield "samples", request.samples or "those stocked in the market"
    if held:
        yield "samples of each class", ", ".join(f"{cls} {held[cls]:,}" for cls in sorted(held))
    if report.requirement.samples_digest is not None:
        yield "content hash of the samples", wording.short(report.requirement.samples_digest)
    yield f"held-out {report.reads}s", request.heldout or "none given"
    yield "engines", ", ".join(request.engines)
    yield "seed", str(request.seed)
