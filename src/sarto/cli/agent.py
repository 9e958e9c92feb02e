"""`sarto agent`: lets others measure and run models on this machine."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli.output import Debug, Json, emit, told
from sarto.errors import RequestError, suggest

if TYPE_CHECKING:
    from sarto.devices.agent import Limits

RUNTIMES = ("torch", "compile", "onnxruntime", "litert", "executorch", "openvino")
TOKEN = "SARTO_AGENT_TOKEN"


def agent(
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine need another.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8741,
    token_file: Annotated[
        str | None, typer.Option(help=f"File with the token; else {TOKEN}, else one is made and shown.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help=f"Offer this one ({', '.join(RUNTIMES)}); again for each. Else all."),
    ] = None,
    max_threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads that a request may ask for; else all cores.")
    ] = None,
    memory_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Memory of the process that runs models; else half of the machine's."),
    ] = None,
    upload_bytes: Annotated[
        int | None, typer.Option(min=1, help="Size of an uploaded model, at most.")
    ] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds that a request may work, at most.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Let others measure and run models on this machine, over HTTP with a token."""
    with told(as_json=as_json, debug=debug):
        unknown = [name for name in runtime or [] if name not in RUNTIMES]
        if unknown:
            raise RequestError(
                f"--runtime: an agent offers no {unknown[0]!r}{suggest(unknown[0], RUNTIMES)}",
                where="--runtime",
            )
        token, made = _token(token_file)
        limits = _limits(
            threads=max_threads, memory_bytes=memory_bytes, upload_bytes=upload_bytes, deadline_s=deadline
        )
        try:
            from sarto.devices.agent.server import serve
        except ModuleNotFoundError as error:
            if error.name not in ("fastapi", "uvicorn", "h11", "starlette"):
                raise
            raise RequestError(f"an agent needs {error.name}: pip install 'sarto[agent]'") from None

        def ready(address: str) -> None:
            if as_json:
                emit({"address": address, "token": token if made else None})
                return
            typer.echo(f"listening at {address}")
            if made:
                typer.echo(f"token: {token}")
            typer.echo(f'use it with {TOKEN} and a device with "agent": "{address}"; stop it with Ctrl-C')
            if host not in ("127.0.0.1", "::1", "localhost"):
                typer.echo(
                    "note: HTTP is not encrypted; others on the way can read the token and the models. Use it in a "
                    "network that you trust, or through a tunnel",
                    err=True,
                )

        serve(
            token,
            host=host,
            port=port,
            limits=limits,
            runtimes=tuple(runtime) if runtime else RUNTIMES,
            ready=ready,
        )


def _token(file: str | None) -> tuple[str, bool]:
    """The token, and whether it was made here."""
    # What runs models has no need to know it.
    given = os.environ.pop(TOKEN, "")
    if file is not None:
        try:
            given = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(
                f"--token-file: {file!r} can't be read: {error}", where="--token-file"
            ) from error
        if not given:
            raise RequestError(
                f"--token-file: {file!r} is empty; write the token into it", where="--token-file"
            )
    return given or secrets.token_urlsafe(24), not given


def _limits(**given: Any) -> Limits:
    from sarto.devices.agent import Limits

    return Limits(**{name: value for name, value in given.items() if value is not None})
