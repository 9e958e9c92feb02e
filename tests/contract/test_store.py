"""The folder store keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarto.market import Store
from sarto.testing.store_contract import OpenStore, StoreContract


class TestFolderStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        Store.create(tmp_path / "market").close()
        return lambda: Store.open(tmp_path / "market")
