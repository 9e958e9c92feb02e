"""`sarto export`: a finished model for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from sarto.cli.given import check_there, together
from sarto.cli.output import Debug, Json, emit, progress, told
from sarto.errors import RequestError, suggest
from sarto.types import Precision

if TYPE_CHECKING:
    from sarto.export import Exported, TargetName

FORMATS = ("onnx", "pt2", "openvino", "executorch", "litert", "aotinductor")


def export(
    folder: Annotated[str, typer.Argument(help="A finished model's folder.")],
    to: Annotated[
        str, typer.Option(help="onnx, pt2 (torch), openvino, executorch, litert, or aotinductor.")
    ] = "onnx",
    precision: Annotated[str, typer.Option(help="float32, float16, bfloat16 or int8.")] = "float32",
    samples: Annotated[
        str | None,
        typer.Option(
            help="Labelled samples to compare with eager on, beside random inputs; else the order's own."
        ),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Samples that int8 is calibrated on; else those of --samples.")
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Samples of one call, where the format can't leave the batch free.", min=1)
    ] = 1,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="File to write; else the folder's own name, with the precision where it is not float32.",
        ),
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a finished model for another runtime, run there and compared with eager before it counts."""
    with told(as_json=as_json, debug=debug):
        together(
            lambda: _known("--to", "format", to, FORMATS),
            lambda: _known("--precision", "precision", precision, get_args(Precision)),
            lambda: check_there("--samples", samples),
            lambda: check_there("--calibration", calibration),
        )
        from sarto.export import check_target
        from sarto.pipeline import Artifact
        from sarto.pipeline.exporting import export_artifact, place_for

        format_, exact = cast("TargetName", to), cast("Precision", precision)  # known, as was checked above
        target = Path(out) if out else place_for(Path(folder), format_, exact)
        given = samples is not None or calibration is not None
        together(
            lambda: check_target(to, precision, target.name, calibrated=given),
            lambda: _writable(target),
        )
        artifact = Artifact.read(folder)
        with progress(quiet=as_json) as tell:
            tell(f"writing {to} ({precision}), running it there, comparing with eager", 0, 1)
            found = export_artifact(
                artifact,
                target,
                to=format_,
                precision=exact,
                samples=Path(samples) if samples is not None else None,
                calibration=Path(calibration) if calibration is not None else None,
                batch=batch,
            )
        if as_json:
            emit(found.to_plain())
        else:
            for line in lines(found):
                typer.echo(line)


def _writable(target: Path) -> None:
    if target.is_dir() or not target.parent.is_dir():
        raise RequestError(f"can't write {target}: give a file in a folder that exists", where="--out")


def lines(found: Exported) -> list[str]:
    """What an export tells a person."""
    on = f"{found.n_samples:,} samples" if found.n_samples else "random inputs"
    told = [
        f"wrote {found.path}: {found.size_bytes:,} bytes, {found.precision}, {_batch(found)}",
        f"differs from eager by at most {found.max_relative_difference:.1e} (relative) on {on}",
    ]
    if found.agreement is not None:
        told.append(f"decides like eager on {found.agreement:.2%}")
    if found.accuracy is not None and found.accuracy_eager is not None:
        loss = 100 * (found.accuracy_eager - found.accuracy)
        told.append(
            f"accuracy {found.accuracy:.2%}, eager {found.accuracy_eager:.2%}: {loss:.2f} points lost"
        )
    if found.n_calibrated:
        told.append(
            f"calibrated on {found.n_calibrated:,} of these samples; give others (--samples, --calibration) to judge "
            "it on unseen ones"
        )
    return [*told, f"classes and preprocessing: {found.sidecar}"]


def _batch(found: Exported) -> str:
    if not found.dynamic_batch:
        return f"batch {found.batch}"
    return f"any batch up to {found.max_batch}" if found.max_batch is not None else "any batch"


def _known(option: str, what: str, given: str, known: tuple[Any, ...]) -> None:
    if given not in known:
        raise RequestError(f"{option}: no {what} {given!r}{suggest(given, known)}", where=option)
