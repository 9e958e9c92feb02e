"""What a wrong command line and an unforeseen failure look like: one line, and an exit code."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

#: Base of what a command line that can't be parsed raises, whichever click typer stands on.
Unparsed: type[Exception] = typer.BadParameter.__mro__[2]


class OneLine(TyperGroup):
    """A group of commands whose errors are one line on standard error, or one JSON object on standard output."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and leave with its exit code: 2 for a wrong command line, 1 for what nobody foresaw."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except Unparsed as error:
            code = _fail(given, "UsageError", _unparsed(error), 2)
        except BrokenPipeError:
            # Whoever read the output has gone; Python would complain once more while it closes.
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115
            code = 1
        except (typer.Abort, KeyboardInterrupt):
            code = _fail(given, "Interrupted", "interrupted; run the same command again to go on", 130)
        except OSError as error:
            code = _fail(given, type(error).__name__, str(error), 1)
        except Exception as error:
            told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            code = _fail(
                given, type(error).__name__, f"{told} (this is a defect of sarto; --debug shows where)", 1
            )
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _fail(args: Sequence[str], kind: str, text: str, code: int) -> int:
    if "--debug" in args and kind != "UsageError":
        traceback.print_exc()
    line = " ".join(text.split())
    if "--json" in args:
        error: dict[str, Any] = {"type": kind, "detail": line, "where": None, "problems": []}
        typer.echo(json.dumps({"error": error}, sort_keys=True, ensure_ascii=False))
    typer.echo(f"error: {line}", err=True)
    return code


def _unparsed(error: Exception) -> str:
    # Without a command there is no message: the help, which click has printed, says it all.
    text = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    return text if text and "\n" not in text.strip() else "give a command, see above"
