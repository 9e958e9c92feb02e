"""ONNX Runtime on the processor: sessions that leave other threads alone, as plain functions on arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sarto.errors import RequestError

#: Type of an ONNX input -> type of the array that is fed.
DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file that is ready to run: call it with one array per input, and get its output.

    Attributes:
        names: names of the inputs, in order.
        shapes: their sizes; a text stands for a size that is free.
        dtypes: their types.
        outputs: names of the outputs.
        metadata: texts that travel in the file.
        threads: threads that it runs on.
        version: of ONNX Runtime.
    """

    session: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int | str, ...], ...]
    dtypes: tuple[type[np.generic], ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    threads: int
    version: str

    def __call__(self, *inputs: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Outputs for a batch; one array where the file has one output.

        Raises:
            RequestError: number, type or shape of the arrays are not what the file takes; all problems at once.
        """
        self.check(inputs)
        results = self.session.run(None, dict(zip(self.names, inputs, strict=True)))
        return results[0] if len(results) == 1 else tuple(results)

    def check(self, inputs: tuple[np.ndarray, ...]) -> None:
        """Refuse arrays that the file does not take.

        Raises:
            RequestError: says of each what was given and what is taken.
        """
        if len(inputs) != len(self.names):
            raise RequestError(f"this model takes {len(self.names)} arrays, {len(inputs)} were given")
        problems = []
        for name, shape, dtype, given in zip(self.names, self.shapes, self.dtypes, inputs, strict=True):
            fits = len(shape) == given.ndim and all(
                isinstance(want, str) or want == have for want, have in zip(shape, given.shape, strict=True)
            )
            if not fits or given.dtype != dtype:
                wanted = ", ".join(str(size) for size in shape)
                problems.append(
                    f"input {name!r} must be {np.dtype(dtype)} of shape ({wanted}), got {given.dtype} of shape "
                    f"{given.shape}"
                )
        if problems:
            raise RequestError(problems[0], problems=problems)


def load_onnx(source: str | Path | bytes, *, threads: int = 1) -> OnnxModel:
    """A session for an ONNX file or its bytes: sequential, and worker threads that wait without spinning.

    Raises:
        RequestError: threads is not positive, ONNX Runtime can't load the file, or an input is no plain tensor.
    """
    if threads < 1:
        raise RequestError(f"threads must be at least 1, got {threads}")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    where = "these bytes" if isinstance(source, bytes) else repr(str(source))
    try:
        given = source if isinstance(source, bytes) else str(source)
        session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RequestError(
            f"ONNX Runtime {ort.__version__} can't load {where}: {_first_line(error)}", where="onnx"
        ) from error
    entries = session.get_inputs()
    strange = [f"input {e.name!r} of {where} is a {e.type}" for e in entries if e.type not in DTYPES]
    if strange:
        raise RequestError(f"{strange[0]}; known are {', '.join(DTYPES)}", problems=strange)
    return OnnxModel(
        session,
        tuple(entry.name for entry in entries),
        tuple(tuple(size if isinstance(size, int) else str(size) for size in e.shape) for e in entries),
        tuple(DTYPES[entry.type] for entry in entries),
        tuple(entry.name for entry in session.get_outputs()),
        dict(session.get_modelmeta().custom_metadata_map),
        threads,
        ort.__version__,
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
