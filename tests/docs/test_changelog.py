"""The changelog and the package name one version."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def test_the_top_version_of_the_changelog_is_the_packages(repository: Path) -> None:
    packaged = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    headings = re.findall(r"^## (.+)$", (repository / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings, "CHANGELOG.md has no version; start with '## [VERSION] - Unreleased'"
    top = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (Unreleased|\d{4}-\d{2}-\d{2})", headings[0])
    assert top, f"CHANGELOG.md starts with '## {headings[0]}'; write '## [{packaged}] - Unreleased' or a date"
    assert top[1] == packaged, f"CHANGELOG.md is at {top[1]}, pyproject.toml at {packaged}"


def test_every_section_has_a_known_name_and_a_line(repository: Path) -> None:
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", text, flags=re.M)[1:]
    names = {section.splitlines()[0] for section in sections}
    assert names and names <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert all(re.search(r"^- \S", section, re.M) for section in sections)
