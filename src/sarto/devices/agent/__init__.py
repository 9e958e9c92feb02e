"""Devices on other machines: an agent there measures and runs models, a worker here speaks to it."""

from __future__ import annotations

from sarto.devices.agent.client import RemoteWorker
from sarto.devices.agent.limits import Limits

__all__ = ["Limits", "RemoteWorker"]
