"""`sarto verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sarto.cli.output import Debug, Json, emit, told
from sarto.errors import StoreError, VerifyError


def verify(
    path: Annotated[str, typer.Argument(help="A finished model's folder, or a market.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a finished model (hashes, ONNX and its device's file against eager, budget) or a market (every file)."""
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
        if not Path(path).is_dir():
            what = "that is a file" if Path(path).exists() else "there is no such folder"
            raise StoreError(
                f"no finished model and no market at {path}: {what}; give the folder that `sarto make -o` wrote, or "
                "that of a market",
                where=path,
            )
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
