"""Where the milliseconds go, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from sarto.devices.profiling.predictor import Share
from sarto.errors import RequestError

#: Layers that get a bar of their own; the quickest others share one.
BARS = 40


def draw_shares(shares: Sequence[Share], path: Path, *, title: str) -> None:
    """Write a bar for each layer, in the order of the model, as an SVG or PNG file by the name of the path.

    Raises:
        RequestError: the name ends in something else, or the file can't be written.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "png"):
        raise RequestError(f"{path.name!r}: pictures are drawn as .svg or .png")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = sorted(shares, key=lambda share: -share.latency_ms)[:BARS]
    names = [share.layer or "runtime" for share in shares if share in shown]
    times = [share.latency_ms for share in shares if share in shown]
    kinds = [share.kinds[0] for share in shares if share in shown]
    if len(shares) > len(shown):
        names.append(f"{len(shares) - len(shown)} others")
        times.append(sum(share.latency_ms for share in shares) - sum(times))
        kinds.append("others")
    colours = {word: f"C{place % 10}" for place, word in enumerate(dict.fromkeys(kinds))}
    with rc_context({"svg.hashsalt": "sarto", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 1.2 + 0.2 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for word, colour in colours.items():
            places = [place for place, kind_here in enumerate(kinds) if kind_here == word]
            axes.barh(places, [times[place] for place in places], color=colour, label=word)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("predicted milliseconds")
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise RequestError(
            f"can't write {str(path)!r}: {error.strerror or error}", where=str(path)
        ) from error
