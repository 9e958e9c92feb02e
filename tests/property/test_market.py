"""A store behaves like a dict of contents, whatever is done to it in whichever order."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import arrays
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sarto.errors import StoreError
from sarto.market import Samples, Store, encode_samples, read_samples
from sarto.testing.store_contract import key_of, pixels, scorer, stock

NAMES = st.sampled_from(["one", "two", "three"])
SEEDS = st.integers(0, 3)
KEYS = st.sampled_from("abc")


@dataclass
class Model:
    """What a store should hold, without a store: content is its seed."""

    stocked: dict[int, str] = field(default_factory=dict)
    fragments: dict[str, set[int]] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store.create(self.folder / "market")
        self.model = Model()

    def teardown(self) -> None:
        problems, orphans = self.store.verify(), self.store.clean()
        self.store.close()
        shutil.rmtree(self.folder)
        assert (problems, orphans) == ([], ())

    @rule(name=NAMES, seed=SEEDS)
    def add(self, name: str, seed: int) -> None:
        taken = seed not in self.model.stocked and name in self.model.stocked.values()
        try:
            learnware = stock(self.store, name, seed=seed, samples=pixels(seed=seed % 2))
        except StoreError as error:
            assert taken, error
            return
        assert not taken
        assert learnware.name == self.model.stocked.setdefault(seed, name)
        assert learnware.id == self.model.ids.setdefault(seed, learnware.id)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        seeds = [seed for seed, found in self.model.stocked.items() if found == name]
        try:
            removed = self.store.remove(name)
        except StoreError:
            assert not seeds
            return
        del self.model.stocked[seeds[0]]
        gone = {key for key, sources in self.model.fragments.items() if seeds[0] in sources}
        assert set(removed.fragments) == gone
        for key in gone:
            del self.model.fragments[key]

    @rule(digit=KEYS, seeds=st.sets(SEEDS, max_size=2))
    def put_fragment(self, digit: str, seeds: set[int]) -> None:
        sources = {seed for seed in seeds if seed in self.model.ids}
        key, known = key_of(digit), key_of(digit) in self.model.fragments
        try:
            self.store.put_fragment(
                key, scorer(2, seed=ord(digit)), {"of": sorted(self.model.ids[s] for s in sources)}
            )
        except StoreError:
            assert not known and not sources <= set(self.model.stocked)
            return
        self.model.fragments.setdefault(key, sources)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder / "market")

    @rule(seed=SEEDS)
    def read(self, seed: int) -> None:
        if seed in self.model.stocked:
            graph = self.store.graph(self.model.ids[seed][: 7 + 16])
            assert torch.equal(graph.tensors["fc.weight"], scorer(seed=seed).tensors["fc.weight"])
            assert self.store.samples(self.model.ids[seed]) == pixels(seed=seed % 2)

    @invariant()
    def same_as_the_model(self) -> None:
        found = {learnware.id: learnware.name for learnware in self.store.learnwares()}
        assert found == {self.model.ids[seed]: name for seed, name in self.model.stocked.items()}
        fragments = {item.key: set(item.learnwares) for item in self.store.fragments()}
        assert fragments == {
            key: {self.model.ids[s] for s in seeds} for key, seeds in self.model.fragments.items()
        }


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=5, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def some_samples(draw: st.DrawFn) -> Samples:
    classes = draw(
        st.lists(
            st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1),
            min_size=1,
            max_size=4,
            unique=True,
        )
    )
    extra = draw(st.lists(st.integers(0, len(classes) - 1), max_size=6))
    labels = draw(st.permutations([*range(len(classes)), *extra]))
    shape = (len(labels), draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    return Samples(draw(arrays(np.uint8, shape)), np.array(labels), tuple(classes))


@settings(max_examples=30, deadline=None)
@given(some_samples(), st.data())
def test_samples_survive_storage_and_order(samples: Samples, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.safetensors"
        path.write_bytes(encode_samples(samples))
        found = read_samples(path)
    assert found == samples
    assert encode_samples(found) == encode_samples(samples)
    order = data.draw(st.permutations(samples.classes))
    assert samples.only(order) == samples
    assert samples.only(order).classes == tuple(order)


@settings(max_examples=30, deadline=None)
@given(some_samples(), st.integers(1, 4), st.none() | st.integers(0, 5))
def test_taking_and_joining_count_right(samples: Samples, k: int, seed: int | None) -> None:
    taken = samples.take(k, seed)
    assert taken.counts == {name: min(k, count) for name, count in samples.counts.items()}
    whole = {
        (samples.classes[label], image.tobytes())
        for image, label in zip(samples.images, samples.labels, strict=True)
    }
    part = {
        (taken.classes[label], image.tobytes())
        for image, label in zip(taken.images, taken.labels, strict=True)
    }
    assert part <= whole
    singles = [samples.only([name]) for name in samples.classes]
    assert singles[0].concat(*singles[1:]) == samples
