"""Numbers and names of a report as people read them."""

from __future__ import annotations

from sarto.types import CostLine, Interval, Report

#: Names of the cost numbers, and the unit that their column shows.
COSTS = {
    "params": "parameters",
    "flops": "FLOPs",
    "memory_bytes": "peak memory of activations",
    "size_bytes": "size of the stored tensors",
    "latency_ms": "latency of a batch",
    "process_bytes": "memory of a process",
}
ROLES = {
    "pick": "delivered",
    "plan": "other plan",
    "donor": "donor as it is",
    "ensemble": "donors side by side",
    "probe": "donor with a new head",
    "finetune": "fine-tuned donor",
    "baseline": "other method",
    "control": "control",
    "trivial": "trivial",
}
#: What accuracy on the order's own samples is called in a column and after a number, by whose word their labels are.
OWN = {"order": "own samples", "donors": "own images, donors' labels"}
ON_OWN = {"order": "on your samples", "donors": "agreement with the donors on your images"}
#: What was compared, by whose word the labels of own samples are.
BASES = {
    name: {"loto": f"{own}, one of each class left out", "heldout": "held-out samples"}
    for name, own in OWN.items()
}
#: Lines of Python that call a model, and what its ONNX file reads, by what a sample is.
CALLS = {"image": 'model("photo.png")', "text": 'model("some words")'}
ONNX_READS = {
    "image": "for images in [0, 1]",
    "text": "for the ids of tokens in vocabulary.json; manifest.json says how texts are parted and filled up",
}
MISSING = "\N{EN DASH}"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def cost_name(name: str, reads: str) -> str:
    """A cost number's name; FLOPs are those of one image or text."""
    return (
        f"{COSTS[name]} {'an image' if reads == 'image' else f'a {reads}'}"
        if name == "flops"
        else COSTS[name]
    )


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return MISSING if share is None else f"{100 * share:.1f}%"


def span(interval: Interval | None) -> str:
    """An interval of shares, as whole percentages: "79 to 91%"."""
    return "" if interval is None else f"{100 * interval.low:.0f} to {100 * interval.high:.0f}%"


def points(gap: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * gap:+.1f}".replace("-", "\N{MINUS SIGN}")


def count(value: float | None) -> str:
    """A whole number with separators."""
    return MISSING if value is None else f"{round(value):,}"


def compact(value: float | None) -> str:
    """A large number with three digits and k, M, G or T."""
    if value is None:
        return MISSING
    for step, letter in _STEPS:
        if abs(value) >= 0.9995 * step:
            return f"{float(f'{value / step:.3g}'):g} {letter}"
    return f"{value:g}"


def amount(name: str, value: float | None) -> str:
    """A cost number with its unit."""
    if value is None:
        return MISSING
    if name == "latency_ms":
        return f"{value:.3g} ms"
    if name.endswith("_bytes"):
        return f"{compact(value)}B" if value >= 1000 else f"{value:g} B"
    return compact(value) if name == "flops" else count(value)


def predicted(line: CostLine) -> str:
    """What was predicted of a cost, with its bounds where they are known, or counted, which is told."""
    text = amount(line.name, line.predicted)
    if line.predicted is not None and line.basis != "predicted":
        return f"{text} ({line.basis})"
    if line.predicted is None or line.predicted_low is None or line.predicted_high is None:
        return text
    if line.name == "latency_ms":
        return f"{text} ({line.predicted_low:.3g} to {line.predicted_high:.3g})"
    return f"{text} ({amount(line.name, line.predicted_low)} to {amount(line.name, line.predicted_high)})"


def number(value: float | None) -> str:
    """A number of a check: whole ones with separators, small ones with an exponent."""
    if value is None:
        return ""
    if float(value).is_integer():
        return f"{round(value):,}"
    return f"{value:.3g}"


def short(sha: str | None) -> str:
    """The first digits of a content hash."""
    return MISSING if sha is None else sha.removeprefix("sha256:")[:12]


def clipped(text: str, length: int) -> str:
    """A text that ends in an ellipsis where it is longer than `length` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip(" ,;") + "\N{HORIZONTAL ELLIPSIS}"


def listed(names: tuple[str, ...], most: int = 8) -> str:
    """Names in a sentence: "ship, dog and horse"; the rest counted where there are more than `most`."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def headline(report: Report) -> str:
    """The result in one sentence."""
    pick, classes = report.pick, listed(report.request.task.title)
    size = f"{report.measured.params:,} parameters"
    failed = sum(not check.ok for check in report.checks)
    ending = f"; {failed} of {len(report.checks)} checks failed" if failed else ""
    if pick.accuracy_heldout is not None:
        return f"{percent(pick.accuracy_heldout)} of held-out {report.reads}s named right: {classes} in {size}{ending}"
    if pick.accuracy_loto is not None:
        right = "right" if report.requirement.labelled_by == "order" else "agreement with the donors"
        return f"About {percent(pick.accuracy_loto)} {right} on {report.reads}s like yours: {classes} in {size}{ending}"
    return f"A model for {classes} in {size}{ending}"
