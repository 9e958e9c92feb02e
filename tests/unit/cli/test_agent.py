from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.markets import run


def test_help_needs_neither_torch_nor_a_web_server() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom sarto.cli.app import app\n"
        "assert CliRunner().invoke(app, ['agent', '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'numpy', 'fastapi', 'uvicorn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_an_agent_offers_what_it_can() -> None:
    found = run("agent", "--runtime", "aotinductor")
    assert found.exit_code == 2
    assert "--runtime: an agent offers no 'aotinductor'" in found.stderr


def test_a_token_is_long_and_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setenv("SARTO_AGENT_TOKEN", "short")
    found = run("agent", "--port", "0")
    assert found.exit_code == 2
    assert "at least 16 characters" in found.stderr
    (tmp_path / "token").write_text("\n", encoding="utf-8")
    assert "is empty" in run("agent", "--token-file", tmp_path / "token").stderr
    assert "can't be read" in run("agent", "--token-file", tmp_path / "none").stderr


def test_limits_are_above_zero() -> None:
    assert "deadline_s must be above 0" in run("agent", "--deadline", "-1").stderr


def test_a_missing_web_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sarto.devices.agent.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    found = run("agent", "--port", "0")
    assert found.exit_code == 2
    assert "an agent needs uvicorn: pip install 'sarto[agent]'" in found.stderr
