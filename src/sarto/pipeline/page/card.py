"""The card of an artifact folder: what the model is, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sarto.pipeline.page.wording import (
    CALLS,
    ONNX_READS,
    OWN,
    ROLES,
    amount,
    compact,
    cost_name,
    headline,
    listed,
    percent,
    predicted,
    short,
    span,
)
from sarto.types import Report

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def render_card(report: Report) -> str:
    """The README of the artifact folder: result, cost, use, comparison, origin."""
    return "\n".join(_lines(report)).rstrip("\n") + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {_text(headline(report))}"
    yield ""
    for sentence in report.sentences:
        yield f"- {_text(sentence)}"
    yield from ("", "The page with figures and all checks: [report.html](report.html).", "")
    yield from ("## Use", "", "```python", "import sarto")
    yield from (
        'model = sarto.load("path/of/this/folder")',
        f"print({CALLS[report.reads]}[0].label)",
        "```",
        "",
    )
    yield f"It says one of: {_text(listed(report.plan.classes or report.request.task.title, most=40))}."
    yield f"`model.onnx` gives the same logits in ONNX Runtime, {ONNX_READS[report.reads]}."
    yield from ("", "## Cost", "")
    yield from _table(
        ("cost", "limit", "predicted or counted", "measured"),
        [
            (
                cost_name(c.name, report.reads),
                amount(c.name, c.budget),
                predicted(c),
                amount(c.name, c.measured),
            )
            for c in report.cost_lines()
        ],
    )
    own = OWN[report.requirement.labelled_by]
    yield from ("", "## Comparison", "")
    yield from _table(
        ("model", "role", own, "held out", "parameters"),
        [
            (
                row.name,
                ROLES[row.role],
                _accuracy(row.accuracy_loto, span(row.interval)),
                _accuracy(row.accuracy_heldout, span(row.heldout_interval)),
                compact(row.cost.params if row.cost is not None else None),
            )
            for row in report.rows
        ],
    )
    if report.per_class:
        yield from ("", "## Class by class", "")
        yield from _table(
            ("class", "donor", own, "held out"),
            [
                (s.cls, s.donor or "", percent(s.recall_loto), percent(s.recall_heldout))
                for s in report.per_class
            ],
        )
    if report.checks:
        yield from ("", "## Checks", "")
        yield from (f"- {'passed' if check.ok else 'FAILED'}: {_text(check.name)}" for check in report.checks)
    if report.lineage:
        yield from ("", "## Where it comes from", "")
        yield from _table(
            ("donor", "licence", "origin", "id"),
            [(d.name, d.licence or "not stated", d.origin, short(d.learnware)) for d in report.lineage],
        )
    digest = report.requirement.samples_digest
    samples = f" Samples {short(digest)}." if digest is not None else ""
    yield from ("", f"Plan {short(report.plan.key())}.{samples}")


def _accuracy(share: float | None, interval: str) -> str:
    return f"{percent(share)} ({interval})" if share is not None and interval else percent(share)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield "| " + " | ".join(_text(cell) for cell in row) + " |"


def _text(text: str) -> str:
    """A text on one line in which nothing is Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
