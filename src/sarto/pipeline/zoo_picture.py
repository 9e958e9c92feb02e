"""The picture of a dissected zoo: similarities of all places, and the sets by colour along every model."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from sarto.errors import RequestError
from sarto.pipeline.zoo_map import ZooMap

#: Colours of sets, told apart by most people who see few colours.
PALETTE = "tab10"


def draw_map(found: ZooMap, path: Path) -> None:
    """Write the picture as .svg or .png.

    Raises:
        RequestError: another kind of file.
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise RequestError(f"a picture is an .svg or .png file, got {path.name!r}", where=str(path))
    n, total = len(found.models), len(found.cka)
    figure = Figure(figsize=(6.5, 5.2 + 0.35 * n), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[5, 0.8 + 0.35 * n])
    image = upper.imshow(found.cka, vmin=0.0, vmax=1.0, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=upper, label="\n".join(filter(None, ("unbiased CKA", found.errors_told))))
    edge, middles = 0, []
    for model in found.models:
        middles.append(edge + (len(model.places) - 1) / 2)
        edge += len(model.places)
        if edge < total:
            upper.axhline(edge - 0.5, color="white", linewidth=0.8)
            upper.axvline(edge - 0.5, color="white", linewidth=0.8)
    names = [model.name for model in found.models]
    upper.set_yticks(middles, names, fontsize=8)
    upper.set_xticks(middles, names, fontsize=8, rotation=45, ha="right")
    colours = colormaps[PALETTE]
    for row, model in enumerate(found.models):
        for piece, label in enumerate(model.sets):
            colour = colours(label % 10) if label >= 0 else (0.9, 0.9, 0.9, 1.0)
            width = 1.0 / max(len(model.sets), 1)
            lower.barh(
                row, width, left=piece * width, height=0.7, color=colour, edgecolor="white", linewidth=0.5
            )
    lower.set_yticks(range(n), names, fontsize=8)
    lower.invert_yaxis()
    lower.set_xlim(0, 1)
    lower.set_xlabel("from stem to classifier; one colour a set")
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
