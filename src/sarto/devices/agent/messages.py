"""What an agent is asked and what it answers, as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sarto.types import Precision

#: What can be uploaded: a zip file of a graph's two files, a file of a runtime, a zip file of OpenVINO's two files.
Kind = Literal["graph", "pt2", "onnx", "tflite", "pte", "openvino"]
#: Runtimes that an agent may offer.
AgentRuntime = Literal["torch", "compile", "onnxruntime", "litert", "executorch", "openvino"]
DType = Literal["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]

#: Models of one request, runs of each, sizes of an array.
MOST_MODELS, MOST_RUNS, MOST_SIZES = 32, 10_000, 8


def _whole(value: object) -> object:
    """2.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
ModelId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="What the upload answered.")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Where(_Message):
    """How a model is run."""

    runtime: AgentRuntime
    threads: Annotated[int, Field(ge=1, le=1024), WHOLE] = 1
    precision: Precision = "float32"


class TimeRequest(Where):
    """Models that take turns while they are timed.

    Attributes:
        seconds: of measuring, for each model.
        runs: of each model; none takes as many as fit.
        fresh: in a process that was started for it.
    """

    models: Annotated[tuple[ModelId, ...], Field(min_length=1, max_length=MOST_MODELS, strict=False)]
    batch: Annotated[int, Field(ge=1, le=65_536), WHOLE] = 1
    seconds: Annotated[float, Field(gt=0, le=600)] = 0.7
    runs: Annotated[int, Field(ge=1, le=MOST_RUNS), WHOLE] | None = None
    warmup: Annotated[int, Field(ge=1, le=MOST_RUNS), WHOLE] | None = None
    fresh: bool = False


class LoadRequest(Where):
    """A model to load, to see what it takes."""

    model: ModelId
    fresh: bool = False


class MemoryRequest(Where):
    """A model to weigh in a process of its own."""

    model: ModelId
    batch: Annotated[int, Field(ge=1, le=65_536), WHOLE] = 1
    runs: Annotated[int, Field(ge=1, le=100), WHOLE] = 3


class Array(_Message):
    """An array; data holds its numbers, little-endian, row by row, in base64."""

    dtype: DType
    shape: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1 << 40), WHOLE], ...], Field(max_length=MOST_SIZES, strict=False)
    ]
    data: str


class RunRequest(Where):
    """A model to run on a batch."""

    model: ModelId
    arrays: Annotated[tuple[Array, ...], Field(max_length=64, strict=False)]


class Offer(_Message):
    """The machine that the agent runs on, and what it offers."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    sarto: str
    runtimes: dict[str, str]
    max_threads: int
    max_upload_bytes: int
    max_worker_bytes: int


class Uploaded(_Message):
    """A model that the agent keeps."""

    id: ModelId
    kind: Kind
    size_bytes: int


class Input(_Message):
    """An array that a model takes; None is a free size."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class LoadAnswer(_Message):
    """A model's inputs, and the seconds that loading it took."""

    inputs: tuple[Input, ...]
    seconds: float
    version: str


class TimeAnswer(_Message):
    """Milliseconds of every measured run of each model, and how often each ran before."""

    times: tuple[tuple[float, ...], ...]
    warmup: int
    version: str


class MemoryAnswer(_Message):
    """Bytes that a fresh process grew by, and what it had before."""

    model_bytes: int
    runtime_bytes: int


class RunAnswer(_Message):
    """Outputs of a model."""

    arrays: tuple[Array, ...]


class Deleted(_Message):
    """A model that the agent no longer keeps."""

    id: ModelId


class Problem(_Message):
    """Why a request was refused or failed."""

    type: str
    detail: str
    problems: tuple[str, ...] = ()
