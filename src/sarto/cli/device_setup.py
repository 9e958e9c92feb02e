"""`sarto device setup`: an environment of its own for a runtime."""

from __future__ import annotations

from typing import Annotated

import typer

from sarto.cli.output import Debug, Json, emit, told


def setup(
    name: Annotated[str, typer.Argument(help="openvino, executorch or litert.")],
    again: Annotated[bool, typer.Option("--again", help="Make it anew where it is there.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Install a runtime into an environment of its own, for where it can't live beside the rest (SARTO_HOME)."""
    with told(as_json=as_json, debug=debug):
        from sarto.devices.runtimes.setup import set_up

        folder, version = set_up(name, again=again)
        if as_json:
            emit({"runtime": name, "version": version, "folder": str(folder)})
        else:
            typer.echo(f"{name} {version} is ready in {folder}")
