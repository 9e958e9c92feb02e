"""What an agent lets in: graphs and exported models made of known operators, without code and without other files.

It is read by a worker with a limit of memory, so that a file that takes too much or crashes a parser ends that alone.
"""

from __future__ import annotations

import mmap
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from sarto.devices.agent.flat import root
from sarto.errors import SPELT_OUT, RequestError, SartoError, suggest

#: Kind -> name of the file that a runtime loads; a graph is a folder.
NAMES: Mapping[str, str] = {
    "graph": "graph",
    "pt2": "model.pt2",
    "onnx": "model.onnx",
    "tflite": "model.tflite",
    "pte": "model.pte",
    "openvino": "model.xml",
}
STANDARD = ("", "ai.onnx")
#: Number of an operator of LiteRT that a plug-in implements.
CUSTOM = 32
#: Families of ExecuTorch's operators, and who else may compute.
FAMILIES = ("aten", "dim_order_ops", "quantized_decomposed", "executorch_prim")
DELEGATES = ("XnnpackBackend",)


def convert(arguments: Mapping[str, Any], arrays: Sequence[Any]) -> dict[str, Any]:
    """The path that a runtime loads, relative to the folder, or what is wrong; called by a worker.

    Args:
        arguments: `kind`, `file` (the uploaded bytes) and `folder` (an empty one, which receives what is let in).
    """
    kind, file, folder = str(arguments["kind"]), Path(arguments["file"]), Path(arguments["folder"])
    try:
        CHECKS[kind](file, folder)
    except SartoError as error:
        return {"detail": error.detail, "problems": list(error.problems)}
    return {"path": NAMES[kind]}


def check_graph(file: Path, folder: Path) -> None:
    """A zip file of `graph.json` and `weights.safetensors`, as sarto writes them."""
    from sarto.graph import read_graph
    from sarto.graph.file import GRAPH_NAME, WEIGHTS_NAME

    home = folder / NAMES["graph"]
    home.mkdir()
    unpack(file, {GRAPH_NAME: home / GRAPH_NAME, WEIGHTS_NAME: home / WEIGHTS_NAME})
    graph = read_graph(home)
    # Each is read from its place, so that a file that is cut off shows.
    for name in graph.tensors:
        graph.tensors[name]


def check_pt2(file: Path, folder: Path) -> None:
    """A program that `torch.export` saved: no pickles, known operators."""
    from sarto.graph import read_pt2

    read_pt2(file)
    file.rename(folder / NAMES["pt2"])


def check_onnx(file: Path, folder: Path) -> None:
    """Operators of the standard domain alone, in functions and inner graphs too; all weights in the file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(file.read_bytes())
    except (DecodeError, ValueError) as error:
        raise RequestError(f"it is no ONNX file: {error}") from error
    if not model.graph.node:
        raise RequestError("it is no ONNX file: its graph has no operators")
    _tell("an ONNX file", _onnx_problems(model, onnx))
    file.rename(folder / NAMES["onnx"])


def check_tflite(file: Path, folder: Path) -> None:
    """Operators of LiteRT itself alone."""

    def problems(data: memoryview) -> Iterator[str]:
        for code in root(data, b"TFL3").tables(1):
            if max(code.number(0, "b"), code.number(3, "i")) == CUSTOM:
                yield f"operator {code.text(1)!r} is a custom one"

    _tell("a LiteRT file", _mapped(file, problems))
    file.rename(folder / NAMES["tflite"])


def check_pte(file: Path, folder: Path) -> None:
    """Operators of ExecuTorch itself, and parts compiled for XNNPACK alone."""

    def problems(data: memoryview) -> Iterator[str]:
        for plan in root(data, b"ET12").tables(1):
            for operator in plan.tables(6):
                if operator.text(0).partition("::")[0] not in FAMILIES:
                    yield f"operator {operator.text(0)!r} is none of {', '.join(FAMILIES)}"
            for delegate in plan.tables(7):
                if delegate.text(0) not in DELEGATES:
                    yield f"a part is compiled for {delegate.text(0)!r}; allowed is {', '.join(DELEGATES)}"

    _tell("an ExecuTorch file", _mapped(file, problems))
    file.rename(folder / NAMES["pte"])


def check_openvino(file: Path, folder: Path) -> None:
    """A zip file of `model.xml` and `model.bin`, with layers of OpenVINO's own operator sets alone."""
    path = folder / NAMES["openvino"]
    unpack(file, {"model.xml": path, "model.bin": folder / "model.bin"})
    size, problems = (folder / "model.bin").stat().st_size, dict[str, None]()
    layers = 0

    def refuse(*_: object) -> None:
        raise RequestError("model.xml has a document type, which no model needs")

    def seen(tag: str, fields: Mapping[str, str]) -> None:
        nonlocal layers
        if tag == "layer":
            layers += 1
            version = fields.get("version", "")
            if not (version.startswith("opset") and version[5:].isdigit()):
                problems[
                    f"layer {fields.get('type')!r} is of {version!r}, which is no operator set of OpenVINO"
                ] = None
        if tag == "data" and "offset" in fields and "size" in fields:
            start, length = fields["offset"], fields["size"]
            if not (start.isdigit() and length.isdigit() and int(start) + int(length) <= size):
                problems[f"weights at {start} of {length} bytes lie outside model.bin ({size:,} bytes)"] = (
                    None
                )

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, seen
    try:
        with path.open("rb") as source:
            parser.ParseFile(source)
    except expat.ExpatError as error:
        raise RequestError(f"model.xml is no XML: {error}") from error
    if not layers:
        raise RequestError("model.xml describes no layers; it is no OpenVINO model")
    _tell("an OpenVINO model", list(problems))


CHECKS: Mapping[str, Callable[[Path, Path], None]] = {
    "graph": check_graph,
    "pt2": check_pt2,
    "onnx": check_onnx,
    "tflite": check_tflite,
    "pte": check_pte,
    "openvino": check_openvino,
}


def unpack(file: Path, wanted: Mapping[str, Path]) -> None:
    """Copy the members of a zip file to where they belong; it must have these, uncompressed, and no others.

    Raises:
        RequestError: it is no zip file, has other members, or one that is compressed, encrypted or damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
            names = sorted(entry.filename for entry in found)
            if names != sorted(wanted):
                shown = ", ".join(repr(name[:80]) for name in names[:SPELT_OUT])
                raise RequestError(
                    f"the zip file must hold {' and '.join(sorted(wanted))}; it holds {shown or 'nothing'}"
                )
            for entry in found:
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise RequestError(
                        f"{entry.filename} must be stored in the zip file as it is, not compressed"
                    )
                with archive.open(entry) as source, wanted[entry.filename].open("xb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise RequestError(f"it is no whole zip file: {error}") from error


def _onnx_problems(model: Any, onnx: Any) -> list[str]:
    """Everything in a model that is no standard operator or lies outside the file; whole messages are walked."""
    problems: dict[str, None] = {}
    left = [model]
    while left:
        message = left.pop()
        if isinstance(message, onnx.TensorProto):
            if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
                problems[f"tensor {message.name[:80]!r} lies outside the file"] = None
            continue
        if isinstance(message, onnx.FunctionProto) and message.domain not in STANDARD:
            problems[f"function {message.name[:80]!r} is of the domain {message.domain[:80]!r}"] = None
        if isinstance(message, onnx.NodeProto):
            name, domain = message.op_type[:80], message.domain[:80]
            if domain not in STANDARD:
                problems[f"operator {name!r} is of the domain {domain!r}"] = None
            elif not onnx.defs.has(name):
                problems[f"there is no standard operator {name!r}"] = None
        for field, value in message.ListFields():
            if field.message_type is not None:
                left.extend([value] if hasattr(value, "ListFields") else value)
    return list(problems)


def _mapped(file: Path, problems: Callable[[memoryview], Iterator[str]]) -> list[str]:
    with file.open("rb") as source:
        if not file.stat().st_size:
            raise RequestError("it is empty")
        # The mapping is read-only, so the views on it need no copy; all are gone before it is closed.
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            return list(dict.fromkeys(problems(view)))


def _tell(what: str, problems: Sequence[str]) -> None:
    if problems:
        raise RequestError(f"{what} with this is not let in", problems=problems)


def kind_of(path: Path, runtime: str) -> str:
    """What kind of upload a file is.

    Raises:
        RequestError: an agent takes no such file.
    """
    if path.is_dir():
        return "graph"
    if path.name.endswith(".aoti.pt2"):
        raise RequestError(f"{path.name} is native code, which an agent never runs", where=str(path))
    kinds = {".pt2": "pt2", ".onnx": "onnx", ".tflite": "tflite", ".pte": "pte", ".xml": "openvino"}
    if path.suffix not in kinds:
        raise RequestError(
            f"{path.name} is no file that an agent runs with {runtime}{suggest(path.suffix, kinds)}",
            where=str(path),
        )
    return kinds[path.suffix]
