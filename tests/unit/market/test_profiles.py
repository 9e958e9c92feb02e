"""Device profiles in a market: stocked, found, replaced, removed; also in markets from before there were any."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sarto.errors import StoreError
from sarto.market import Store
from sarto.types.profile import DeviceProfile, KindModel, ProfiledDevice, Residuals


def profile(name: str, threads: int = 1) -> DeviceProfile:
    return DeviceProfile(
        name=name,
        device=ProfiledDevice(
            processor="paper",
            cores=2,
            system="none",
            runtime="torch",
            version="9.9",
            threads=threads,
            batch=1,
            sarto="0.1.0",
            started="2026-01-01T00:00:00+00:00",
        ),
        kinds=KindModel(
            names=("fixed",),
            weights=(1.0,),
            vector_width=1,
            residuals=Residuals(folds=((1.0,),), part=(0,), shares=(0.1,)),
        ),
    )


def test_profiles_are_stocked_found_replaced_and_removed(tmp_path: Path) -> None:
    with closing(Store.create(tmp_path / "market")) as store:
        for name in ("desk", "board"):
            store.profiles.put(profile(name))
        store.profiles.put(profile("desk", threads=2))
    with closing(Store.open(tmp_path / "market")) as store:
        assert [found.name for found in store.profiles] == ["board", "desk"]
        assert store.profiles.get("desk") == profile("desk", threads=2)
        assert store.verify() == [] and store.clean() == ()
        with pytest.raises(StoreError, match=r"no device profile 'desc' \(did you mean 'desk'\?\)"):
            store.profiles.get("desc")
        assert store.profiles.remove("desk") and not store.profiles.remove("desk")
        assert [found.name for found in store.profiles] == ["board"]


def test_a_market_from_before_there_were_profiles_gets_them(tmp_path: Path) -> None:
    Store.create(tmp_path / "market").close()
    with closing(sqlite3.connect(tmp_path / "market" / "index.sqlite")) as database:
        database.execute("DROP TABLE profiles")
        database.commit()
    with closing(Store.open(tmp_path / "market")) as store:
        assert list(store.profiles) == [] and not store.profiles.remove("desk") and store.verify() == []
        with pytest.raises(StoreError, match="the market holds none: sarto device measure makes one"):
            store.profiles.get("desk")
        store.profiles.put(profile("desk"))
        assert store.profiles.get("desk") == profile("desk")


def test_a_damaged_profile_is_told_and_harms_no_other(tmp_path: Path) -> None:
    with closing(Store.create(tmp_path / "market")) as store:
        store.profiles.put(profile("board"))
        store.profiles.put(profile("desk"))
    with closing(sqlite3.connect(tmp_path / "market" / "index.sqlite")) as database:
        database.execute("UPDATE profiles SET profile = '{' WHERE name = 'desk'")
        database.commit()
    with closing(Store.open(tmp_path / "market")) as store:
        assert store.profiles.get("board") == profile("board")
        with pytest.raises(StoreError, match=r"'desk' can't be read .* measure it again"):
            store.profiles.get("desk")
        (problem,) = store.verify()
        assert "'desk' can't be read" in problem
