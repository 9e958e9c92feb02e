from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from sarto.graph import capture
from sarto.pipeline.anatomy import Anatomy, describe, draw
from sarto.pipeline.anatomy.html import render_page
from sarto.pipeline.anatomy.layout import TALLEST, rows_of, scale, stages_of
from sarto.pipeline.anatomy.words import counted, share_text
from sarto.testing.pico import PICO, pico

SVG = "{http://www.w3.org/2000/svg}"


class Three(nn.Module):
    """Three parallel layers whose results are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.branches = nn.ModuleList(nn.Linear(6, width) for width in (3, 5, 8))
        self.fc = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.fc(torch.cat([branch(x).relu() for branch in self.branches], 1))


def anatomy(name: str) -> Anatomy:
    return describe(capture(*pico(name), prove=False))


@pytest.fixture(scope="module")
def deep() -> Anatomy:
    """A residual chain of 60 layers that needs several rows."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 9), nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(self.one(x).relu())

    model = nn.Sequential(nn.Linear(3, 4), *(Block() for _ in range(30)), nn.Linear(4, 2))
    return describe(capture(model.eval(), torch.zeros(2, 3), prove=False))


@pytest.mark.parametrize("name", PICO)
def test_the_picture_is_one_sound_svg_that_names_every_layer(name: str) -> None:
    found = anatomy(name)
    text = draw(found, title='<"&>')
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and root.get("aria-label") == '<"&>'
    titles = [element.text or "" for element in root.iter(f"{SVG}title")]
    for step in found.steps:
        assert any(title.startswith(step.name) for title in titles), step.name
    for cut in found.cut_points:
        assert any(title.startswith(f"cut point {cut.value}\n") for title in titles) == cut.canonical
    assert not root.findall(f".//{SVG}script") and not root.findall(f".//{SVG}image")
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]
    assert text == draw(found, title='<"&>')


@pytest.mark.parametrize("name", PICO)
def test_every_value_that_is_read_is_drawn_once(name: str) -> None:
    found = anatomy(name)
    links = [link for row in rows_of(found) for link in row.links]
    drawn = {(link.source.step.id, link.target.step.id) for link in links}
    assert len(drawn) == len(links)
    wanted = {(read, step.id) for step in found.steps for read in step.reads}
    # Parallel layers share one link to their stack.
    assert drawn <= wanted
    assert {source for source, _ in drawn} == {source for source, _ in wanted}
    assert {step.id for step in found.steps} == {bar.step.id for row in rows_of(found) for bar in row.bars}


def test_heights_grow_with_the_square_root_of_the_channels() -> None:
    found = anatomy("mobile")
    height = scale(found)
    widest = max(step.channels for step in found.steps if step.kind != "join")
    assert height(widest) == pytest.approx(TALLEST)
    assert height(widest / 4) == pytest.approx(TALLEST / 2)
    for row in rows_of(found):
        for bar in row.bars:
            assert bar.top - bar.bottom == pytest.approx(height(bar.step.channels))


def test_parallel_layers_are_stacked_in_one_column() -> None:
    found = describe(capture(Three().eval(), torch.zeros(2, 4), prove=False))
    (row,) = rows_of(found)
    bars = [bar for bar in row.bars if bar.step.name.startswith("branches")]
    assert len({(bar.left, bar.right) for bar in bars}) == 1
    assert [bar.bottom for bar in bars[1:]] == [bar.top for bar in bars[:-1]] and bars[0].bottom == 0
    assert bars[-1].top == pytest.approx(scale(found)(16))
    heights = [bar.top - bar.bottom for bar in bars]
    assert [heights[at] / heights[0] for at in (1, 2)] == pytest.approx([5 / 3, 8 / 3])


def test_long_models_are_broken_into_rows_at_cut_points(deep: Anatomy) -> None:
    rows = rows_of(deep)
    assert len(rows) > 1 and [row.goes_on for row in rows] == [True] * (len(rows) - 1) + [False]
    assert [span.number for row in rows for span in row.blocks] == list(range(len(deep.blocks)))
    for row in rows:
        assert all(
            one.right == pytest.approx(two.left) for one, two in zip(row.blocks, row.blocks[1:], strict=False)
        )
        assert all(0 <= bar.left < bar.right <= row.right + 1e-6 for bar in row.bars)
    # A row that goes on from another is entered by the value that the cut carries, around its first sum too.
    joins = sum(step.kind == "join" for step in deep.steps)
    assert sum(link.top is not None for row in rows for link in row.links) == joins


def test_arcs_do_not_cross_what_they_skip(deep: Anatomy) -> None:
    for row in rows_of(deep):
        for link in row.links:
            if link.top is not None:
                under = [bar.top for bar in row.bars if link.source.left <= bar.left <= link.target.left]
                assert link.top > max(under)


def test_what_is_pooled_and_spread_again_stays_in_its_stage() -> None:
    found = anatomy("mobile")
    stages = dict(zip([step.name for step in found.steps], stages_of(found.steps), strict=True))
    assert stages["squeeze"] == stages["expand"] == stages["project"] != stages["fc"]


def test_colours_and_hatching_tell_what_is_pinned() -> None:
    pinned = anatomy("pinned")
    by_name = {step.name: step for step in pinned.steps}
    assert by_name["conv1"].sliceable == 6 and by_name["conv2"].sliceable == 0
    root = ElementTree.fromstring(draw(pinned, title="pinned"))
    classes = {
        (group.findtext(f"{SVG}title") or "").partition(":")[0]: {
            rect.get("class") for rect in group.iter(f"{SVG}rect")
        }
        for group in root.iter(f"{SVG}g")
    }
    assert "free solid" in classes["conv1"] and "hatch" not in classes["conv1"]
    assert {"pin solid", "hatch"} <= classes["conv2"]


def test_the_page_holds_the_picture_and_the_tables() -> None:
    found = anatomy("pinned")
    text = render_page(found, name="<mine>")
    assert "&lt;mine&gt;" in text and "<mine>" not in text
    assert draw(found, title="The layers of <mine>") in text
    assert "layer_norm" in text and "Blocks between cut points" in text
    assert "<script" not in text and "<link" not in text and "src=" not in text
    for group in found.groups:
        assert group.id.replace(".", ".<wbr>") in text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.99999, "99.9%"), (0.00001, "0.1%"), (0.5, "50.0%")]
)
def test_shares_say_all_only_where_it_is_all(share: float, text: str) -> None:
    assert share_text(share) == text


def test_one_and_many() -> None:
    assert [counted(n, "cut point") for n in (0, 1, 1234)] == [
        "0 cut points",
        "1 cut point",
        "1,234 cut points",
    ]
