"""What every store promises, as tests: derive from `StoreContract` and override one fixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from sarto.errors import RequestError, StoreError
from sarto.graph.model import Arg, BatchDim, Input, ModelGraph, Node, Ref, TensorRef
from sarto.graph.operators import default_args
from sarto.graph.run import evaluate
from sarto.market import Samples, Store
from sarto.types import Cost, Learnware, Preprocessing

#: Opens the same market each time it is called; the market is empty at first.
OpenStore = Callable[[], Store]

COLOUR = Preprocessing(size=(4, 4), channels=3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def scorer(n_classes: int = 3, *, seed: int = 0) -> ModelGraph:
    """The smallest classifier of 3x4x4 images: mean over space, then a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    batch = BatchDim()
    mean: dict[str, Arg] = {**default_args("aten.mean.dim"), "self": Ref("x"), "dim": (2, 3)}
    linear: dict[str, Arg] = {
        "input": Ref("mean"),
        "weight": TensorRef("fc.weight"),
        "bias": TensorRef("fc.bias"),
    }
    return ModelGraph(
        inputs=(Input("x", (batch, 3, 4, 4), "float32"),),
        nodes=(
            Node("mean", "aten.mean.dim", mean, ((batch, 3),), ("float32",)),
            Node("fc", "aten.linear.default", linear, ((batch, n_classes),), ("float32",)),
        ),
        outputs=("fc",),
        tensors={
            "fc.weight": torch.randn(n_classes, 3, generator=generator),
            "fc.bias": torch.randn(n_classes, generator=generator),
        },
        parameters=frozenset(["fc.weight", "fc.bias"]),
    )


def pixels(classes: Sequence[str] = ("ant", "bee"), *, per_class: int = 2, seed: int = 0) -> Samples:
    """Random 4x4 colour images, `per_class` of each class."""
    images = np.random.default_rng(seed).integers(0, 256, (len(classes) * per_class, 4, 4, 3), dtype=np.uint8)
    return Samples(images, np.tile(np.arange(len(classes)), per_class), tuple(classes))


def stock(store: Store, name: str = "donor", *, seed: int = 0, **changed: Any) -> Learnware:
    """Add a `scorer` of three classes; every argument of `Store.add` can be replaced."""
    arguments: dict[str, Any] = {
        "name": name,
        "classes": ("ant", "bee", "cat"),
        "preprocessing": COLOUR,
        "cost": Cost(params=12, flops=18, memory_bytes=216, size_bytes=48, basis="predicted"),
        "licence": "MIT",
        **changed,
    }
    graph = arguments.pop("graph", None)
    return store.add(scorer(len(arguments["classes"]), seed=seed) if graph is None else graph, **arguments)


def key_of(digit: str) -> str:
    """A plan key for tests."""
    return "sha256:" + digit * 64


class StoreContract:
    """Every store keeps what it is given, whole, under ids that are never used again for something else."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Override: a function that opens the same, at first empty, market each time."""
        raise NotImplementedError("override the fixture `open_store` of StoreContract")

    def test_what_was_added_comes_back_after_reopening(self, open_store: OpenStore) -> None:
        graph, samples = scorer(seed=5), pixels()
        with open_store() as store:
            learnware = stock(
                store,
                graph=graph,
                samples=samples,
                notes="n",
                origin="o",
                skill={"ant": 0.5},
                skill_basis="b",
            )
        with open_store() as store:
            assert store.learnwares() == (learnware,)
            assert store.get("donor") == learnware
            found = store.graph("donor")
            x = torch.rand(2, 3, 4, 4)
            assert torch.equal(evaluate(found, x)[0][0], evaluate(graph, x)[0][0])
            assert found.parameters == graph.parameters
            assert store.samples("donor") == samples
            assert store.verify() == []
        assert (learnware.n_samples, learnware.input_shape) == ({"ant": 2, "bee": 2}, (3, 4, 4))
        assert (learnware.notes, learnware.origin, learnware.skill_basis) == ("n", "o", "b")
        assert learnware.skill == {"ant": 0.5}

    def test_samples_follow_the_order_of_the_models_classes(self, open_store: OpenStore) -> None:
        samples = pixels(("cat", "ant"))
        with open_store() as store:
            stock(store, samples=samples)
            assert store.samples("donor").classes == ("ant", "cat")
            assert store.samples("donor").only(["cat"]) == samples.only(["cat"])

    def test_adding_the_same_again_changes_nothing(self, open_store: OpenStore) -> None:
        with open_store() as store:
            first = stock(store, samples=pixels())
            assert stock(store, samples=pixels(), notes="other words") == first
            assert stock(store, "another-name", samples=pixels()).name == "donor"
            assert store.learnwares() == (first,)

    def test_the_id_follows_the_content(self, open_store: OpenStore) -> None:
        other = Preprocessing(size=(4, 4), channels=3, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
        with open_store() as store:
            ids = [
                stock(store, "a").id,
                stock(store, "b", seed=1).id,
                stock(store, "c", classes=("bee", "ant", "cat")).id,
                stock(store, "d", preprocessing=other).id,
                stock(store, "e", licence="BSD-3-Clause").id,
                stock(store, "f", samples=pixels()).id,
                stock(store, "g", samples=pixels(seed=1)).id,
            ]
        assert len(set(ids)) == len(ids)

    def test_a_name_belongs_to_one_learnware(self, open_store: OpenStore) -> None:
        with open_store() as store:
            first = stock(store)
            with pytest.raises(
                StoreError, match=r"'donor' belongs to another learnware.*choose another name.*rm donor"
            ):
                stock(store, seed=1)
            assert store.learnwares() == (first,)
            assert store.verify() == []
            store.remove("donor")
            assert stock(store, seed=1).id != first.id

    def test_parts_that_do_not_fit_are_refused_together(self, open_store: OpenStore) -> None:
        with open_store() as store, pytest.raises(RequestError) as refused:
            stock(store, "a name", classes=("ant", "ant"), samples=pixels(("dog",)), graph=scorer())
        text = " ".join(refused.value.problems)
        for words in (
            "name 'a name'",
            "'ant' is named 2 times",
            "model has 3 outputs",
            "'dog'",
        ):
            assert words in text

    def test_a_learnware_answers_to_name_id_and_prefix(self, open_store: OpenStore) -> None:
        with open_store() as store:
            one, two = stock(store, "one"), stock(store, "two", seed=1)
            digits = one.id.removeprefix("sha256:")
            for which in ("one", one.id, one.id[:13], digits, digits[:6]):
                assert store.get(which) == one
            with pytest.raises(StoreError, match=r"no learnware 'tow'.*two"):
                store.get("tow")
            with pytest.raises(StoreError, match="no learnware"):
                store.get(two.id[:12])

    def test_a_removed_id_stays_known_and_is_never_used_again(self, open_store: OpenStore) -> None:
        with open_store() as store:
            first = stock(store)
            removed = store.remove("donor")
            assert removed.learnware == first
            assert removed.freed_bytes > 0
        with open_store() as store:
            assert store.learnwares() == ()
            for which in (first.id, first.id[:15], "donor"):
                with pytest.raises(StoreError, match=r"'donor'.*was removed on.*add it again"):
                    store.graph(which)
            second = stock(store, seed=1)
            assert second.id != first.id
            again = stock(store, "new-name")
            assert again.id == first.id
            assert store.get(first.id).name == "new-name"
            assert torch.equal(store.graph(first.id).tensors["fc.bias"], scorer().tensors["fc.bias"])
            assert store.verify() == []

    def test_removing_keeps_what_others_need(self, open_store: OpenStore) -> None:
        with open_store() as store:
            stock(store, "one", samples=pixels())
            stock(store, "two", samples=pixels(), licence="BSD-3-Clause")
            assert store.remove("one").freed_bytes == 0
            assert store.samples("two") == pixels()
            assert store.graph("two").outputs == ("fc",)
            assert store.remove("two").freed_bytes > 0
            assert (store.verify(), store.clean()) == ([], ())

    def test_a_learnware_without_samples_says_so(self, open_store: OpenStore) -> None:
        with open_store() as store:
            stock(store)
            with pytest.raises(StoreError, match="'donor' has no samples"):
                store.samples("donor")

    def test_fragments_come_back(self, open_store: OpenStore) -> None:
        graph = scorer(2, seed=7)
        with open_store() as store:
            donor = stock(store)
            assert store.fragment(key_of("a")) is None
            put = store.put_fragment(
                key_of("a"), graph, {"plan": {"nodes": [{"op": "source", "of": donor.id}]}}
            )
            assert put.learnwares == (donor.id,)
        with open_store() as store:
            assert store.fragments() == (put,)
            found = store.fragment(key_of("a"))
            assert found is not None
            assert torch.equal(found.tensors["fc.weight"], graph.tensors["fc.weight"])
            assert store.verify() == []

    def test_a_fragments_key_keeps_its_first_content(self, open_store: OpenStore) -> None:
        with open_store() as store:
            first = store.put_fragment(key_of("a"), scorer(2), {})
            assert store.put_fragment(key_of("a"), scorer(2, seed=1), {"other": 1}) == first
            assert store.verify() == []
            assert store.remove_fragment(key_of("a"))
            assert not store.remove_fragment(key_of("a"))
            assert (store.fragments(), store.clean()) == ((), ())

    def test_fragments_go_with_their_learnware(self, open_store: OpenStore) -> None:
        with open_store() as store:
            one, two = stock(store, "one"), stock(store, "two", seed=1)
            store.put_fragment(key_of("a"), scorer(2, seed=2), {"of": one.id})
            store.put_fragment(key_of("b"), scorer(2, seed=3), {"of": [one.id, two.id]})
            store.put_fragment(key_of("c"), scorer(2, seed=4), {"of": two.id})
            store.put_fragment(key_of("d"), scorer(2, seed=5), {"of": key_of("a")})
            removed = store.remove("one")
            assert removed.fragments == (key_of("a"), key_of("b"), key_of("d"))
            assert [item.key for item in store.fragments()] == [key_of("c")]
            assert (store.verify(), store.clean()) == ([], ())
            with pytest.raises(StoreError, match=r"comes from 'one'.*was removed"):
                store.put_fragment(key_of("e"), scorer(2), {"of": one.id})
            assert (store.verify(), len(store.fragments())) == ([], 1)

    def test_a_fragment_needs_a_key_and_a_plain_lineage(self, open_store: OpenStore) -> None:
        with open_store() as store, pytest.raises(RequestError) as refused:
            store.put_fragment("../../x", scorer(), {"of": object()})
        assert "must be 'sha256:' and 64 hex digits" in refused.value.problems[0]
        assert "plain JSON" in refused.value.problems[1]

    def test_several_handles_see_each_other(self, open_store: OpenStore) -> None:
        with open_store() as one, open_store() as two:
            stock(one)
            assert two.get("donor") == one.get("donor")
            two.remove("donor")
            assert one.learnwares() == ()

    def test_adding_and_removing_at_once_loses_nothing(self, open_store: OpenStore) -> None:
        def work(number: int) -> None:
            with closing(open_store()) as store:
                stock(store, f"own-{number}", seed=number, samples=pixels())
                stock(store, f"shared-{number}", seed=99)
                stock(store, f"gone-{number}", seed=100 + number, samples=pixels())
                store.remove(f"gone-{number}")
                store.clean()

        open_store().close()
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, range(3)))
        with open_store() as store:
            names = [learnware.name for learnware in store.learnwares()]
            assert sorted(name for name in names if name.startswith("own")) == ["own-0", "own-1", "own-2"]
            assert len(names) == 4
            assert store.verify() == []
            assert [store.samples(f"own-{number}") for number in range(3)] == [pixels()] * 3

    def test_graphs_stay_usable_after_closing(self, open_store: OpenStore) -> None:
        with open_store() as store:
            stock(store)
            graph = store.graph("donor")
        assert torch.equal(graph.tensors["fc.weight"], scorer().tensors["fc.weight"])
        with pytest.raises(StoreError, match="was closed: open it again"):
            store.learnwares()
