"""`sarto verify` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli.output import Debug, Json, emit, told
from sarto.errors import RequestError, VerifyError

if TYPE_CHECKING:
    from sarto.pipeline import Artifact

FORMATS = ("onnx", "pt2")


def verify(
    path: Annotated[str, typer.Argument(help="A finished model's folder, or a market.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a finished model (hashes, ONNX against eager, budget) or a market (every file)."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market, verify_artifact

        if (Path(path) / "manifest.json").is_file() or (Path(path) / ".job").is_dir():
            checks = verify_artifact(Path(path))
            if as_json:
                ok = all(check.ok for check in checks)
                emit({"ok": ok, "checks": [check.model_dump(mode="json") for check in checks]})
            else:
                for check in checks:
                    typer.echo(f"{'passed' if check.ok else 'FAILED'}  {check.name}  {check.detail}")
            if as_json and not all(check.ok for check in checks):
                raise typer.Exit(1)
            if not all(check.ok for check in checks):
                raise VerifyError(
                    f"{path} failed: {', '.join(check.name for check in checks if not check.ok)}"
                )
            return
        with Market.open(path) as market:
            problems = market.verify()
        damaged = [problem for problem in problems if not problem.startswith("info:")]
        if as_json:
            emit({"ok": not damaged, "problems": problems})
        else:
            for problem in problems:
                typer.echo(problem)
        if as_json and damaged:
            raise typer.Exit(1)
        if damaged:
            raise VerifyError(f"{path} has damaged objects: {len(damaged)} problems; add the models again")
        if not as_json:
            typer.echo(f"{path}: every object is whole")


def export(
    folder: Annotated[str, typer.Argument(help="A finished model's folder.")],
    to: Annotated[str, typer.Option(help="Format: onnx, or pt2 (torch's exported program).")] = "onnx",
    out: Annotated[
        str, typer.Option("--out", "-o", help="File to write; the folder's own name by default.")
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a finished model for another runtime, checked against eager before it counts."""
    with told(as_json=as_json, debug=debug):
        if to not in FORMATS:
            raise RequestError(f"no format {to!r} (known: {', '.join(FORMATS)})", where="--to")
        from sarto.pipeline import Artifact

        artifact = Artifact.read(folder)
        target = Path(out) if out else Path(folder).with_suffix(f".{to}")
        if target.is_dir() or not target.parent.is_dir():
            raise RequestError(f"can't write {target}: give a file in a folder that exists", where="--out")
        found = _write_onnx(artifact, target) if to == "onnx" else _write_pt2(artifact, target)
        if as_json:
            emit(found)
        else:
            version = f", opset {found['opset']}" if "opset" in found else ""
            typer.echo(
                f"wrote {found['path']}: {found['size_bytes']:,} bytes{version}; differs from eager by at most "
                f"{found['max_relative_difference']:.1e} (relative)"
            )


def _write_onnx(artifact: Artifact, target: Path) -> dict[str, Any]:
    import json

    from sarto.export import export_onnx

    metadata = {
        "classes": json.dumps(list(artifact.classes)),
        "preprocessing": artifact.preprocessing.to_json(),
        "plan": artifact.plan.key(),
    }
    found = export_onnx(artifact.graph, target, metadata=metadata)
    return {
        "path": str(found.path),
        "size_bytes": found.size_bytes,
        "max_relative_difference": found.max_relative_difference,
        "opset": found.opset,
    }


def _write_pt2(artifact: Artifact, target: Path) -> dict[str, Any]:
    """A `.pt2` file; writing it refuses any difference from eager, bit for bit."""
    from sarto.graph.pt2 import write_pt2

    path = write_pt2(artifact.graph, target)
    return {"path": str(path), "size_bytes": path.stat().st_size, "max_relative_difference": 0.0}
