"""The command line. Nothing here imports torch before a command runs, so `sarto --help` answers at once."""

from __future__ import annotations

from sarto.cli.app import app, main

__all__ = ["app", "main"]
