"""How many models may come in at once: a further one is told to come back, and a place is given back in any case."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarto.devices.agent.limits import Limits
from sarto.devices.agent.shelf import BusyError, Shelf


def test_a_further_upload_waits_until_one_is_done(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, Limits(uploads=2))
    with shelf.incoming() as first, shelf.incoming():
        first.write_bytes(b"some")
        with (
            pytest.raises(BusyError, match="2 models are coming in or being checked") as caught,
            shelf.incoming(),
        ):
            pass
        assert not caught.value.waited, "it is told so at once"
    assert not list(tmp_path.iterdir()), "what came in is gone"
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the check failed"), shelf.incoming():
            raise RuntimeError("the check failed")
    with shelf.incoming(), shelf.incoming():
        pass
