"""The page of an anatomy: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sarto.pipeline.anatomy.picture import draw
from sarto.pipeline.anatomy.values import Anatomy
from sarto.pipeline.anatomy.words import inputs_text, shape_text, share_text
from sarto.pipeline.page import wording

#: Rows of a table that stand open; the rest is folded away.
OPEN = 40


def render_page(anatomy: Anatomy, *, name: str) -> str:
    """The anatomy as one HTML page, without scripts and without anything loaded from elsewhere.

    Args:
        name: of the model, as people know it.
    """
    blocks = anatomy.blocks
    return (
        _environment()
        .get_template("anatomy.html.j2")
        .render(
            anatomy=anatomy,
            name=name,
            inputs=inputs_text(anatomy.inputs),
            picture=Markup(draw(anatomy, title=f"The layers of {name}")),
            most_params=max([1, *(block.params for block in blocks)]),
            most_flops=max([1, *(block.flops for block in blocks)]),
            canonical={cut.value: cut for cut in anatomy.cut_points if cut.canonical},
            open=OPEN,
            layers=lambda nodes: [anatomy.names.get(node, node) for node in nodes],
        )
    )


def _few(names: Sequence[str], most: int = 4) -> str:
    return wording.listed(tuple(names), most) if names else wording.MISSING


def _foldable(name: str) -> Markup:
    """A dotted name that may break behind its dots."""
    return Markup(".<wbr>").join(escape(part) for part in name.split("."))


def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("sarto.pipeline.anatomy", "."), PackageLoader("sarto.pipeline.page", ".")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        compact=wording.compact,
        count=wording.count,
        few=_few,
        share=share_text,
        sizes=shape_text,
        foldable=_foldable,
    )
    environment.globals.update(amount=wording.amount)
    return environment
