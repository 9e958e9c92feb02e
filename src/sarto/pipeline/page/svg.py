"""Figures as inline SVG: text stays text, colours follow the page, and nothing outside is named."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

#: Settings that make a figure the same on every machine: no date, no random ids, no mathematics in names.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sarto",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "text.usetex": False,
    "axes.unicode_minus": False,
    "path.simplify": False,
}

_HEAD = re.compile(r"^.*?(?=<svg\b)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->\s*", re.DOTALL)
_NAMESPACE = re.compile(r'\s+xmlns(:\w+)?="[^"]*"')
_FONT = re.compile(r"(font-family: |font: [^;\"]*?px )[^;\"]*")
_ID = re.compile(r'\bid="([^"]+)"')


def write_svg(figure: Figure, *, name: str, title: str, colours: Mapping[str, str]) -> str:
    """An `<svg>` element for the body of a page.

    Args:
        name: put before every id, so that two figures of a page don't clash.
        title: what readers of the screen hear; already escaped.
        colours: hex colour used in the figure -> CSS value that it stands for.
    """
    target = io.StringIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # Names may hold letters that the bundled font lacks; the reader's own fonts draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        undated = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(target, format="svg", metadata=undated)
    text = _HEAD.sub("", target.getvalue(), count=1)
    text = _COMMENT.sub("", _METADATA.sub("", text))
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s+(width|height|version|xmlns(:\w+)?)="[^"]*"', "", opening)
    text = f'{opening} role="img" aria-label="{title}">{rest}'
    text = _NAMESPACE.sub("", text).replace("xlink:href=", "href=")
    text = _ID.sub(rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = _FONT.sub(r"\1var(--sans)", text)
    for colour, value in colours.items():
        text = text.replace(colour, value)
    return text.strip()
