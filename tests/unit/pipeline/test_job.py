"""A job's folder belongs to one order, whichever version of sarto began it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sarto.errors import RequestError
from sarto.pipeline.job import Job
from sarto.types import Request


def test_fields_that_orders_got_since_then_have_their_defaults(tmp_path: Path) -> None:
    order = Request.parse({"task": {"classes": ["cat", "dog"]}})
    Job(tmp_path / "out", order, extra="a plan")
    known = next((tmp_path / "out").rglob("order.json"))
    stored = json.loads(known.read_text())
    assert stored["request"].pop("parting") and stored["request"].pop("recalibrate") is False
    known.write_text(json.dumps(stored))
    Job(tmp_path / "out", order, extra="a plan")
    for other, extra in ((order.replace(seed=1), "a plan"), (order, "another"), (order, "")):
        with pytest.raises(RequestError, match="holds another order"):
            Job(tmp_path / "out", other, extra=extra)
    for text in ("", "[]", '{"request": {}}', '{"request": 3, "extra": "a plan"}'):
        known.write_text(text)
        with pytest.raises(RequestError, match="holds another order"):
            Job(tmp_path / "out", order, extra="a plan")
