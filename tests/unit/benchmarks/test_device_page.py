"""The table of docs/devices.md says what the result files say, and its pictures are there."""

from __future__ import annotations

from benchmarks.device_page import IMAGES, PAGE, PICTURES, devices, page, results, tables


def test_the_page_is_that_of_the_result_files() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(results()), "run: python -m benchmarks.device_page"


def test_every_device_has_a_line_with_its_error() -> None:
    for result in results():
        lines = [line for line in tables(result) if line.startswith("| ") and "measured twice" not in line]
        found = devices(result)
        assert len(lines) == len(found) > 0
        for line, row in zip(lines, found, strict=True):
            assert line.split("|")[2].strip() == f"{100 * row['error_ratio_mean']:.1f} %"


def test_every_picture_that_the_page_names_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in PICTURES:
        assert f"images/predictor-{name}.svg" in text
        assert (IMAGES / f"predictor-{name}.svg").is_file()
