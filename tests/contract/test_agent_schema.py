"""Whatever is sent to the agent, it answers as its own description says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("fastapi")

from sarto.devices.agent import Limits  # noqa: E402
from sarto.devices.agent.server import make_app  # noqa: E402
from tests.unit.devices.agent_models import HEADERS, TOKEN, linear  # noqa: E402

#: Seconds that the agent gives a worker; its answers are waited for as long.
DEADLINE_S = 30
OPERATIONS = (
    ("GET", "/v1/device"),
    ("POST", "/v1/models"),
    ("DELETE", "/v1/models/{model}"),
    ("POST", "/v1/load"),
    ("POST", "/v1/time"),
    ("POST", "/v1/memory"),
    ("POST", "/v1/run"),
)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The agent's OpenAPI description; requests reach the application in this process."""
    limits = Limits(upload_bytes=1 << 20, request_bytes=1 << 16, threads=1, deadline_s=DEADLINE_S)
    app = make_app(TOKEN, tmp_path_factory.mktemp("agent"), limits=limits, runtimes=("onnxruntime",))
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)


def test_every_operation_is_tried(described: Any) -> None:
    found = {(one.ok().method.upper(), one.ok().path) for one in described.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_what_the_description_says(described: Any, method: str, path: str, mode: str) -> None:
    if (mode, path) == ("NEGATIVE", "/v1/device"):
        pytest.skip("it takes nothing that could be wrong")
    strategy = described[path][method].as_strategy(generation_mode=schemathesis.GenerationMode[mode])

    @given(case=strategy)
    @settings(max_examples=5, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
    def tried(case: Any) -> None:
        # Bytes are no model and ids name none, though they look as described: these are refused, and should be.
        checks = [schemathesis.specs.openapi.checks.positive_data_acceptance]
        answer = case.call_and_validate(headers=HEADERS, excluded_checks=checks, timeout=DEADLINE_S)
        assert answer.status_code < 500

    tried()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/load", "/v1/time", "/v1/memory", "/v1/run"])
def test_answers_about_a_model_that_is_there_are_too(described: Any, path: str) -> None:
    upload = described["/v1/models"]["POST"].Case(query={"kind": "onnx"}, body=linear()[0])
    upload.media_type = "application/octet-stream"
    model = upload.call(headers=HEADERS).json()["id"]
    strategy = described[path]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)

    @given(case=strategy)
    @settings(max_examples=4, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
    def tried(case: Any) -> None:
        body = {**case.body, "runtime": "onnxruntime", "threads": 1, "precision": "float32"}
        body |= {"models": [model], "seconds": 0.01} if path == "/v1/time" else {"model": model}
        body |= {"fresh": False} if "fresh" in body else {}
        body |= {name: min(body[name] or 1, 100) for name in ("batch", "runs", "warmup") if name in body}
        case.body = body
        checks = [schemathesis.specs.openapi.checks.positive_data_acceptance]
        answer = case.call_and_validate(headers=HEADERS, excluded_checks=checks, timeout=DEADLINE_S)
        assert path == "/v1/run" or answer.status_code == 200

    tried()
