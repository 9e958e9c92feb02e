"""Where a model runs: the runtime, its precision, threads and batch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from sarto.errors import RequestError
from sarto.types.fields import Name, Positive
from sarto.types.value import Value

RuntimeName = Literal["torch", "compile", "aotinductor", "onnxruntime", "litert", "executorch", "openvino"]
Precision = Literal["float32", "float16", "bfloat16", "int8"]

#: Runtime -> the precisions that a model can have there.
PRECISIONS: Mapping[RuntimeName, tuple[Precision, ...]] = MappingProxyType(
    {
        "torch": ("float32", "float16", "bfloat16"),
        "compile": ("float32", "float16", "bfloat16"),
        "aotinductor": ("float32", "float16", "bfloat16"),
        "onnxruntime": ("float32", "float16", "int8"),
        "litert": ("float32", "float16", "int8"),
        "executorch": ("float32", "float16", "int8"),
        "openvino": ("float32", "float16", "bfloat16", "int8"),
    }
)


class Device(Value):
    """Where the model will run, and how its latency is measured.

    Attributes:
        threads: threads that the runtime may use.
        batch: samples in one measured call.
        precision: of the numbers that the model computes with there; int8 needs samples to calibrate on.
        profile: name or file of a measured profile of the device; None measures on this machine alone.
        agent: address of the agent that measures there, http://host:port; None is this machine.
    """

    runtime: RuntimeName = "onnxruntime"
    threads: Annotated[Positive, Field(le=1024)] = 1
    batch: Annotated[Positive, Field(le=65_536)] = 1
    precision: Precision = "float32"
    profile: Name | None = None
    agent: Annotated[Name, StringConstraints(pattern=r"^https?://[^\s/]+")] | None = None

    @model_validator(mode="after")
    def _check_precision(self) -> Device:
        known = PRECISIONS[self.runtime]
        if self.precision not in known:
            raise RequestError(
                f".precision: {self.runtime} has no {self.precision}; it has {', '.join(known)}"
            )
        return self
