"""One thread, a fixed seed, nobody's own settings: a test gives the same answer everywhere."""

from __future__ import annotations

import functools
import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

SEED = 0

# Read by numpy and torch when they are first imported. With two threads the small steps of the tests are many
# times slower than with one.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["MPLBACKEND"] = "Agg"

settings.register_profile(
    "sarto",
    max_examples=6 if "CI" in os.environ else 20,
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    # Making an example small takes minutes where each has to be captured; that is for the desk, not for CI.
    phases=(Phase.explicit, Phase.generate) if "CI" in os.environ else tuple(Phase),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("sarto")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Seeds the global generators; torch and numpy only where a test has loaded them."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides sarto's own settings, and makes the terminal plain and wide."""
    for name in [name for name in os.environ if name.startswith("SARTO_") and name != "SARTO_DATA"]:
        monkeypatch.delenv(name)
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _operators_read_once() -> None:
    """Reads the list of ONNX operators once a process; torch parses the source of all of them at every export."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    listed = getattr(getattr(registration, "onnxscript_apis", None), "get_torchlib_ops", None)
    if listed is not None and not hasattr(listed, "cache_info"):
        registration.onnxscript_apis.get_torchlib_ops = functools.cache(listed)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets that SARTO_DATA names, for tests marked `data`."""
    named = os.environ.get("SARTO_DATA", "")
    if not Path(named).is_dir() or not named:
        pytest.fail(f"this test needs real data sets: SARTO_DATA is {named!r}; set it to their folder")
    return Path(named).resolve()
