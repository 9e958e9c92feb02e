from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from sarto.pipeline.page import render_card, render_page
from sarto.pipeline.page.figures import accuracy_figure
from sarto.types import Confusion, Report
from tests.unit.page.reports import a_report, cost, row

VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Collects tags, ids and text; fails where tags don't match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.links.append(value or "")


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_a_page_is_balanced_and_needs_nothing_else() -> None:
    page = render_page(a_report())
    found = read(page)
    assert found.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    assert not re.search(r"https?://|//[a-z]|@import|url\((?!#)", page)
    assert "DejaVu" not in page
    assert len(found.ids) == len(set(found.ids))
    assert all(link.removeprefix("#") in found.ids for link in found.links)


def test_a_page_shows_every_row_check_donor_and_sentence() -> None:
    report = a_report()
    text = read(render_page(report)).text
    for name in [item.name for item in (*report.rows, *report.checks, *report.lineage, *report.where_params)]:
        assert name in text
    for sentence in (*report.sentences, *report.not_tried):
        assert sentence in text
    for number in ("681,204", "700,000", "91.7%", "2.13 ms", "+13.4", "39.6 s", "3.1e-07"):
        assert number in text


def test_a_page_and_a_card_are_the_same_each_time() -> None:
    assert render_page(a_report()) == render_page(a_report())
    assert render_card(a_report()) == render_card(a_report())


def test_names_from_users_are_text_and_nothing_else() -> None:
    report = a_report(
        ("ship", EVIL, "$x^2$"),
        rows=(
            row(f"{EVIL} & $\\frac{{$", "pick", 0.9, None, 1000, note=EVIL),
            row('"><svg onload=x>', "trivial", 0.5),
        ),
        comparisons=(),
        sentences=(EVIL,),
    )
    page = render_page(report)
    found = read(page)
    assert "script" not in found.tags
    assert page.count("<svg") == 1
    assert found.text.count(EVIL) >= 4
    assert "$x^2$" in found.text


def test_a_card_holds_no_markdown_but_its_own() -> None:
    report = a_report(("ship", "a|b", "[x](y)"), sentences=("one\n# two",))
    card = render_card(report)
    assert "\\[x\\](y)" in card and "a\\|b" in card
    assert [line for line in card.splitlines() if line.startswith("# ")] == [card.splitlines()[0]]
    tables = [line for line in card.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert widths == {5, 6}
    assert all(item.name in card for item in report.rows if "%" in item.name)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": (row("only", "pick", None),), "comparisons": ()},
        {"rows": (row("only", "pick", 1.0, None, 1),), "comparisons": ()},
        {"rows": (row("held", "pick", None, 0.5, 10),), "comparisons": ()},
        {"rows": (row("line", "pick", 0.3),), "comparisons": ()},
        {"per_class": (), "confusion": None, "where_params": (), "checks": (), "lineage": ()},
        {"seconds": {}, "hashes": {}, "sentences": (), "not_tried": (), "created": ""},
        {"measured": cost(10**12, 10**15), "predicted": cost(1, 1)},
    ],
)
def test_a_page_is_drawn_of_what_there_is(changes: dict[str, object]) -> None:
    report = a_report(**changes)
    assert report.pick.name in read(render_page(report)).text
    assert report.pick.name in render_card(report)


def test_letters_that_the_font_lacks_are_shown_without_a_warning() -> None:
    report = a_report(
        ("\u72ac", "\U0001f408", "\u05d0"), rows=(row("\u72ac", "pick", 0.9, None, 10),), comparisons=()
    )
    assert read(render_page(report)).text.count("\u72ac") > 2


def test_a_failed_check_stands_in_the_headline() -> None:
    report = a_report()
    broken = report.checks[0].replace(ok=False)
    page = render_page(report.replace(checks=(broken, *report.checks[1:])))
    assert "1 of 2 checks failed" in read(page).text
    assert 'class="no">failed' in page


def test_confusion_of_many_classes_keeps_its_colours_and_drops_its_numbers() -> None:
    classes = tuple(f"class {place}" for place in range(40))
    counts = tuple(tuple(7 if at == other else 0 for other in range(40)) for at in range(40))
    page = render_page(a_report(confusion=Confusion(classes=classes, counts=counts, basis="loto")))
    assert page.count("--share:100%") == 40
    assert "said to be class 39: 7 of 7" in page
    assert ">7</td>" not in page


def test_a_page_is_drawn_from_the_text_of_the_report() -> None:
    report = a_report()
    assert render_page(Report.parse(report.to_json())) == render_page(report)


def test_no_text_of_the_figure_is_cut_off() -> None:
    same = [row(f"level {place}", "trivial", 1.0) for place in range(4)]
    figure = accuracy_figure([row("pick", "pick", 1.0, None, 500), *same], limit=1500)
    tops = {float(found) for found in re.findall(r'<text [^>]*\by="(-?[\d.]+)"', figure)}
    assert all(f"level {place}, 100.0%" in figure for place in range(4))
    assert len(tops) >= 5 and min(tops) > 9
