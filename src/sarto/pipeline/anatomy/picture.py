"""The picture of a model as one SVG that needs nothing else: no script, no style sheet, no font."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.resources import files

from sarto.pipeline.anatomy.layout import Bar, Link, Row, rows_of, scale
from sarto.pipeline.anatomy.values import Anatomy, Cut, Step
from sarto.pipeline.anatomy.words import shape_text

_LEFT, _RIGHT, _HEAD, _LEGEND = 58.0, 12.0, 26.0, 48.0
#: The legend needs that much.
_NARROWEST = 600.0
#: Below the base line: two strips with the share of each block, then its number and name.
_STRIP, _STRIP_GAP, _FOOT = 22.0, 5.0, 30.0
_LETTER = 5.7
_TIMES = "\N{MULTIPLICATION SIGN}"
_DOT = " \N{MIDDLE DOT} "
#: Operator of a join -> its sign, and what the legend calls it.
_SIGNS = {
    "add": ("+", "sum"),
    "sub": ("\N{MINUS SIGN}", "difference"),
    "mul": (_TIMES, "product"),
    "cat": ("|", "concat"),
    "stack": ("|", "concat"),
    "scaled_dot_product_attention": ("A", "attention"),
    "matmul": ("\N{MIDDLE DOT}", "matrix product"),
    "bmm": ("\N{MIDDLE DOT}", "matrix product"),
    "einsum": ("\N{MIDDLE DOT}", "matrix product"),
}


def draw(anatomy: Anatomy, *, title: str) -> str:
    """An `<svg>` element: the layers from left to right, as high as they have channels, with arcs, stages and cuts.

    Args:
        title: what readers of the screen hear.
    """
    rows = rows_of(anatomy)
    height = scale(anatomy)
    width = _LEFT + max(_NARROWEST, *(row.right for row in rows)) + _RIGHT
    style = files("sarto.pipeline.anatomy").joinpath("picture.css").read_text(encoding="utf-8")
    parts: list[str] = []
    y = _LEGEND
    for row in rows:
        base = y + _HEAD + row.height + 8
        parts.extend(_row(anatomy, row, y, base, height))
        y = base + 2 * (_STRIP + _STRIP_GAP) + _FOOT
    return (
        f'<svg class="anatomy" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(y)}" '
        f'style="max-width: {_n(width)}px" role="img" '
        f'aria-label="{escape(title, quote=True)}">\n<style>\n{style}</style>\n'
        '<defs><pattern id="anatomy-hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path class="lines" d="M0 0V5"/></pattern></defs>\n'
        f'<rect class="paper" width="{_n(width)}" height="{_n(y)}"/>\n'
        + "\n".join([*_legend(anatomy, rows), *parts])
        + "\n</svg>\n"
    )


def _legend(anatomy: Anatomy, rows: Sequence[Row]) -> Iterator[str]:
    """Two lines: the marks, each only where the picture has it, and how to read sizes and signs."""
    steps = anatomy.steps
    thin = any(step.absorbed or step.kind in ("norm", "weights") for step in steps)
    entries = [
        (_rect("free", 0, -9, 11, 11), "sliceable channels", True),
        (_hatched(0, -9, 11, 11), "pinned channels", any(_pinned(step) for step in steps)),
        (_rect("free thin", 4, -9, 4, 11), "norm or scale", thin),
        (
            '<path class="free line" d="M0 1V-3Q0 -8 5 -8H9Q14 -8 14 -3V1"/>',
            "skips layers",
            any(link.top is not None for row in rows for link in row.links),
        ),
        ('<path class="cut" d="M6 3V-11"/><path class="knob" d="M6 -8l4 4l-4 4l-4 -4z"/>', "cut point", True),
    ]
    x = _LEFT
    for mark, text, wanted in entries:
        if wanted:
            yield f'<g transform="translate({_n(x)} 17)">{mark}<text x="19">{text}</text></g>'
            x += 19 + len(text) * 6.1 + 18
    signs = dict.fromkeys(_SIGNS[step.op] for step in steps if step.kind == "join" and step.op in _SIGNS)
    notes = ["height: channels, square-root scale", "below: parameters and FLOPs of each block"]
    if signs:
        notes.insert(1, f"circles: {', '.join(f'{sign} {name}' for sign, name in signs)}")
    yield f'<text class="small" x="{_n(_LEFT)}" y="36">{_DOT.join(notes)}</text>'


def _row(
    anatomy: Anatomy, row: Row, top: float, base: float, height: Callable[[float], float]
) -> Iterator[str]:
    low = base + 2 * (_STRIP + _STRIP_GAP)
    for place, stage in enumerate(row.stages):
        left, wide = _LEFT + stage.left, stage.right - stage.left
        if place % 2 == 0:
            yield f'<rect class="wash" x="{_n(left)}" y="{_n(top)}" width="{_n(wide)}" height="{_n(base - top)}"/>'
        label = shape_text(anatomy.steps[stage.number].shape)
        fitting = _fitting([label, label.replace(" ", "")], wide - 5)
        yield (
            f"<g><title>{escape(f'stage: {label}')}</title>"
            f'<rect x="{_n(left)}" y="{_n(top)}" width="{_n(wide)}" height="18" fill-opacity="0"/>'
            f'<text class="small" x="{_n(left + 4)}" y="{_n(top + 13)}">{fitting}</text></g>'
        )
    widest = max((bar.top for bar in row.bars), default=0.0)
    right = _LEFT + row.right
    for channels in _ticks(height, widest):
        at = base - height(channels)
        yield f'<path class="grid" d="M{_n(_LEFT)} {_n(at)}H{_n(right)}"/>'
        yield f'<text class="small end" x="{_n(_LEFT - 6)}" y="{_n(at + 3.5)}">{channels:,}</text>'
    yield f'<path class="base" d="M{_n(_LEFT)} {_n(base)}H{_n(right)}"/>'
    cuts = {cut.value: cut for cut in anatomy.cut_points}
    for span in row.blocks:
        last = span.number == len(anatomy.blocks) - 1
        if not last:
            cut = cuts[anatomy.blocks[span.number].end]
            yield _cut(cut, _LEFT + span.right, top + 18, low, base)
    for link in sorted(row.links, key=lambda link: link.top or 0.0, reverse=True):
        yield _link(link, base)
    if row.goes_on and row.bars:
        end = row.bars[-1]
        yield _rect(
            f"{_colour(end.step)} flow",
            _LEFT + end.right,
            base - end.top,
            row.right - end.right,
            end.top,
        )
    for bar in row.bars:
        yield _bar(bar, base)
    yield from _strips(anatomy, row, base)


def _strips(anatomy: Anatomy, row: Row, base: float) -> Iterator[str]:
    """Parameters and FLOPs of each block, as bars as wide as the block."""
    most = {
        name: max([1, *(getattr(block, name) for block in anatomy.blocks)]) for name in ("params", "flops")
    }
    for line, (name, label) in enumerate((("params", "params"), ("flops", "FLOPs"))):
        foot = base + (line + 1) * (_STRIP + _STRIP_GAP)
        yield f'<text class="small end" x="{_n(_LEFT - 6)}" y="{_n(foot - 4)}">{label}</text>'
        yield f'<path class="grid" d="M{_n(_LEFT)} {_n(foot)}H{_n(_LEFT + row.right)}"/>'
        for span in row.blocks:
            tall = _STRIP * getattr(anatomy.blocks[span.number], name) / most[name]
            wide = max(1.0, span.right - span.left - 3)
            yield (
                f'<rect class="cost" x="{_n(_LEFT + span.left + 1.5)}" y="{_n(foot - tall)}" '
                f'width="{_n(wide)}" height="{_n(tall)}"/>'
            )
    foot = base + 2 * (_STRIP + _STRIP_GAP)
    for span in row.blocks:
        block, wide = anatomy.blocks[span.number], span.right - span.left
        told = (
            f"block {span.number + 1}{f': {block.name}' if block.name else ''}\n{block.params:,} parameters\n"
            f"{block.flops:,} FLOPs a sample\n{block.memory_bytes:,} bytes of activations\n"
            f"from {block.start or 'the input'} to {block.end or 'the output'}"
        )
        number, short = str(span.number + 1), block.name.partition(" ")[0]
        parts = short.split(".")
        shorter = ".".join(parts[-3:] if parts[-2:-1] and parts[-2].isdigit() else parts[-2:])
        texts = [f"{number} {block.name}", f"{number} {short}", f"{number} {shorter}", number]
        yield (
            f'<g><title>{escape(told)}</title><rect x="{_n(_LEFT + span.left)}" y="{_n(base + 1)}" '
            f'width="{_n(wide)}" height="{_n(foot + 16 - base)}" fill-opacity="0"/>'
            f'<text class="small mid" x="{_n(_LEFT + (span.left + span.right) / 2)}" y="{_n(foot + 12)}">'
            f"{escape(_fitting(texts, wide - 2))}</text></g>"
        )


def _bar(bar: Bar, base: float) -> str:
    step = bar.step
    left, wide = _LEFT + bar.left, bar.right - bar.left
    told = f"<title>{escape(step_text(step))}</title>"
    if step.kind == "join":
        y, middle = base - bar.top, left + wide / 2
        return (
            f'<g>{told}<rect class="{_colour(step)} flow" x="{_n(left)}" y="{_n(y)}" width="{_n(wide)}" '
            f'height="{_n(bar.top)}"/>'
            f'<circle class="{_colour(step)} join solid" cx="{_n(middle)}" cy="{_n(y)}" r="5.2"/>'
            f'<text class="sign" x="{_n(middle)}" y="{_n(y + 3.1)}">{_SIGNS.get(step.op, ("", ""))[0]}</text></g>'
        )
    body = wide - (3 if step.absorbed else 0)
    height = bar.top - bar.bottom
    pinned = height * (1 - step.sliceable / step.channels) if step.channels else 0.0
    thin = " thin" if step.kind in ("norm", "weights") else ""
    parts = []
    if step.kind == "input":
        parts.append(_rect("in solid", left, base - bar.top, body, height))
    else:
        if height - pinned > 0:
            parts.append(_rect(f"free solid{thin}", left, base - bar.top + pinned, body, height - pinned))
        if pinned > 0:
            parts.append(_hatched(left, base - bar.top, body, pinned, f"pin solid{thin}"))
        if step.absorbed:
            parts.append(_rect(f"{_colour(step)} thin", left + body + 1, base - bar.top, 2, height))
    if bar.bottom:
        parts.append(_rect("paper", left, base - bar.bottom - 0.5, wide, 1))
    return f"<g>{told}{''.join(parts)}</g>"


def _link(link: Link, base: float) -> str:
    source, target = link.source, link.target
    colour = _colour(source.step)
    if link.top is None:
        left, right = _LEFT + source.right, _LEFT + target.left
        top = source.top - source.bottom
        return _rect(f"{colour} flow", left, base - source.top, max(0.0, right - left), top)
    middle = (source.left + source.right) / 2
    start = _LEFT + (middle if source.step.kind == "join" else max(0.0, source.right - 2))
    end = _LEFT + ((target.left + target.right) / 2 if target.step.kind == "join" else target.left + 2)
    high, radius = base - link.top, min(6.0, (end - start) / 2)
    foot = base - target.top - (6 if target.step.kind == "join" else 1)
    return (
        f'<path class="{colour} line" d="M{_n(start)} {_n(base - source.top)}V{_n(high + radius)}'
        f"Q{_n(start)} {_n(high)} {_n(start + radius)} {_n(high)}H{_n(end - radius)}"
        f'Q{_n(end)} {_n(high)} {_n(end)} {_n(high + radius)}V{_n(foot)}"/>'
        f'<path class="{colour}" d="M{_n(end - 2.6)} {_n(foot - 3.6)}h5.2l-2.6 4.4z"/>'
    )


def _cut(cut: Cut, x: float, top: float, low: float, base: float) -> str:
    stride = f", stride {cut.stride}" if cut.stride else ""
    told = (
        f"cut point {cut.value}\n{shape_text(cut.shape)}, {cut.layout}{stride}\n"
        f"{cut.params:,} parameters and {cut.flops:,} FLOPs before it"
    )
    return (
        f'<g><title>{escape(told)}</title><path class="cut" d="M{_n(x)} {_n(top)}V{_n(low)}"/>'
        f'<path class="knob" d="M{_n(x)} {_n(base - 4)}l4 4l-4 4l-4 -4z"/></g>'
    )


def step_text(step: Step) -> str:
    """What the pointer shows over a step."""
    lines = [step.name if step.kind == "input" else f"{step.name}: {step.op}"]
    if step.weight:
        lines[0] += f", weight {shape_text(step.weight)}"
    if step.absorbed:
        lines.append(f"with {', '.join(step.absorbed)}")
    lines.append(f"makes {shape_text(step.shape)}")
    if step.params or step.flops:
        lines.append(f"{step.params:,} parameters, {step.flops:,} FLOPs a sample")
    if step.kind != "input" and step.channels:
        if step.sliceable == step.channels:
            lines.append(f"all {step.channels:,} channels sliceable")
        elif step.sliceable:
            lines.append(f"{step.sliceable:,} of {step.channels:,} channels sliceable")
        else:
            lines.append(f"all {step.channels:,} channels pinned")
    lines += [f"group {name}" for name in step.groups[:4]]
    if len(step.groups) > 4:
        lines.append(f"and {len(step.groups) - 4} more groups")
    return "\n".join(lines)


def _pinned(step: Step) -> bool:
    return step.kind != "input" and step.sliceable < step.channels


def _colour(step: Step) -> str:
    if step.kind == "input":
        return "in"
    return "free" if 2 * step.sliceable > step.channels else "pin"


def _ticks(height: Callable[[float], float], highest: float) -> list[int]:
    """Powers of two that stand far enough apart."""
    found: list[int] = []
    for power in range(20, -1, -1):
        at = height(2**power)
        if at <= highest + 6 and at >= 9 and (not found or height(found[-1]) - at >= 17):
            found.append(2**power)
    return found


def _fitting(texts: list[str], width: float) -> str:
    """The first text that fits, empty where none does."""
    return next((text for text in texts if len(text) * _LETTER <= width), "")


def _hatched(x: float, y: float, width: float, height: float, name: str = "pin") -> str:
    return _rect(name, x, y, width, height) + _rect("hatch", x, y, width, height)


def _rect(name: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{name}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"/>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
