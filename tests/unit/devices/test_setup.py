"""Environments of runtimes: made once, kept, and a failure says how to go on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

from sarto.devices.runtimes import NEEDS, environment, python_of
from sarto.devices.runtimes import setup as room
from sarto.devices.runtimes.place import works_in
from sarto.devices.runtimes.setup import REQUIREMENTS, requirements_of, set_up
from sarto.errors import RequestError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SARTO_HOME", str(tmp_path))
    return tmp_path


def test_an_environment_is_made_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def call(command: Sequence[str]) -> None:
        called.append(list(command))
        if "venv" in command:
            python = python_of(Path(command[-1]))
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)

    # The interpreter of this test stands for an environment that has the runtime.
    monkeypatch.setattr(
        room, "_version", lambda runtime, python: "1.2" if python.exists() and called else None
    )
    assert set_up("litert", call=call) == (environment("litert"), "1.2")
    assert called[0][1:3] == ["-m", "venv"]
    assert called[1][1:4] == ["-m", "pip", "install"] and any("litert-torch" in text for text in called[1])
    assert set_up("litert", call=call) == (environment("litert"), "1.2") and len(called) == 2
    assert works_in(environment("litert")).is_file()
    # What is repaired and fails half-way is no environment that works.
    monkeypatch.setattr(room, "_version", lambda runtime, python: None)
    with pytest.raises(RequestError, match="does not start"):
        set_up("litert", call=lambda command: None)
    assert not works_in(environment("litert")).exists()


def test_an_environment_gets_what_the_extra_of_its_name_installs(repository: Path) -> None:
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for runtime, wanted in REQUIREMENTS.items():
        assert NEEDS[runtime].extra == runtime and list(wanted) == extras[runtime]
    torch = f"torch=={metadata.version('torch').partition('+')[0]}"
    assert torch in requirements_of("litert") and torch not in requirements_of("openvino")
    assert REQUIREMENTS.keys() == {runtime for runtime, need in NEEDS.items() if need.extra is not None}


def test_names_and_failures_say_what_to_do(home: Path) -> None:
    with pytest.raises(
        RequestError, match=r"'litter' is no runtime \(did you mean 'litert'\?\); environments are"
    ):
        set_up("litter")
    with pytest.raises(RequestError, match="'onnxruntime' comes with sarto"):
        set_up("onnxruntime")

    def fail(command: Sequence[str]) -> None:
        raise subprocess.CalledProcessError(1, list(command))

    with pytest.raises(RequestError, match=r"could not be made .* Run sarto device setup openvino again"):
        set_up("openvino", call=fail)
    with pytest.raises(RequestError, match=r"does not start; sarto device setup openvino --again"):
        set_up("openvino", call=lambda command: None)
