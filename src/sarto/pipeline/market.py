"""The market: models to order from, and orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from sarto.errors import RequestError
from sarto.graph import ModelGraph, capture
from sarto.market import Removed, Samples, Store, TextSamples, Vocabulary, read_samples, read_vocabulary
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.choose import Plans, infeasible, propose
from sarto.pipeline.editing import edit
from sarto.pipeline.indexing import indices
from sarto.pipeline.make import make
from sarto.pipeline.order import check_order
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.sources import InputSpec
from sarto.pipeline.stock import stock
from sarto.pipeline.stocking import (
    STOCK_SHARES,
    Pruned,
    Stocking,
    describe_fragments,
    prune_fragments,
    stock_fragments,
)
from sarto.pipeline.stocking_orders import stock_order
from sarto.pipeline.tasks import TaskPlans, by_supernet, make_task, plan_tasks
from sarto.types import (
    Budget,
    Learnware,
    Plan,
    Preprocessing,
    Request,
    TextPreprocessing,
    parse_preprocessing,
)


class Market:
    """A folder of learnwares that orders are made from.

    >>> market = Market.open("market")                                            # doctest: +SKIP
    >>> artifact = market.make(Request.read("request.yaml"), "out")               # doctest: +SKIP
    """

    def __init__(self, store: Store) -> None:
        """Wrap a store; `create` and `open` are the usual ways."""
        self.store = store

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """A new, empty market.

        Raises:
            StoreError: the folder holds something.
        """
        return cls(Store.create(path))

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The market in a folder.

        Raises:
            StoreError: no market there, or one of a newer version.
        """
        return cls(Store.open(path))

    @property
    def path(self) -> Path:
        """The market's folder."""
        return self.store.path

    def close(self) -> None:
        """Let go of the files."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(
        self,
        model: nn.Module | ModelGraph,
        *,
        name: str,
        classes: Sequence[str],
        preprocessing: Preprocessing | TextPreprocessing | Mapping[str, Any],
        example: Tensor | tuple[Tensor, ...] | None = None,
        samples: Samples | TextSamples | str | Path | None = None,
        vocabulary: Vocabulary | str | Path | None = None,
        licence: str = "",
        notes: str = "",
        origin: str = "",
        progress: Progress = silent,
    ) -> Learnware:
        """Stock a model: capture it, prove the graph, count its costs, measure its skill.

        Args:
            model: a classifier whose last layer is linear.
            classes: names of its outputs, in order.
            example: what a module is captured with, batch first; else noise of the preprocessing's size.
            preprocessing: of images, or of texts (kind 'text'); the latter takes what is left out from the vocabulary.
            samples: a few labelled images or texts, or where to read them; needed to slice it by class.
            vocabulary: of a model that reads token ids, or where to read it.

        Raises:
            GraphError: the model can't be captured, or holds NaN.
            RequestError: the parts don't fit together; all problems at once.
            StoreError: the name is taken by other content, or writing failed.
        """
        known = read_vocabulary(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary
        described = (
            described_by(preprocessing, known) if isinstance(preprocessing, Mapping) else preprocessing
        )
        held = read_samples(samples) if isinstance(samples, str | Path) else samples
        if isinstance(model, nn.Module):
            if example is None and isinstance(described, Preprocessing) and described.size is None:
                raise RequestError(
                    "a module is captured with images of a known size: give an example, or preprocessing a size"
                )
            progress("capturing", 0, 1)
            graph = capture(model, _example(described) if example is None else example)
        else:
            graph = model
        return stock(
            self.store,
            graph,
            name=name,
            classes=classes,
            preprocessing=described,
            samples=held,
            licence=licence,
            notes=notes,
            origin=origin or type(model).__name__,
            vocabulary=known,
            progress=progress,
        )

    def edit(
        self,
        artifact: Artifact,
        out: str | Path,
        *,
        add: str | None = None,
        remove: str | None = None,
        budget: Budget | None = None,
        samples: str | Path | None = None,
        heldout: str | Path | None = None,
        without_heldout: bool = False,
        compare: bool = True,
        progress: Progress = silent,
    ) -> Artifact:
        """A packed model with one class more or one less, in a folder of its own; see `sarto.pipeline.editing.edit`.

        Args:
            samples, heldout: of all classes, in place of those of the model's order.
            without_heldout: True: held-out samples of the model's order are left out.
            compare: False: without donors, baselines and random units beside it, which take most of the time.

        Raises:
            RequestError: an unknown class, one that is there already, or a model that is no pack.
            InfeasibleError: the larger model breaks the order's budget.
        """
        return edit(
            self.store,
            artifact,
            Path(out),
            add=add,
            remove=remove,
            budget=budget,
            samples=None if samples is None else Path(samples),
            heldout=None if heldout is None else Path(heldout),
            without_heldout=without_heldout,
            compare=compare,
            progress=progress,
        )

    def learnwares(self) -> tuple[Learnware, ...]:
        """Every manifest, oldest first."""
        return self.store.learnwares()

    def get(self, which: str) -> Learnware:
        """The manifest of a learnware, by name, id or the first digits of its id.

        Raises:
            StoreError: there is none, or several.
        """
        return self.store.get(which)

    def remove(self, which: str) -> Removed:
        """Take a learnware out, with the fragments made from it.

        Raises:
            StoreError: there is none.
        """
        return self.store.remove(which)

    def stock_fragments(
        self,
        names: Sequence[str] = (),
        *,
        sizes: Sequence[float] = STOCK_SHARES,
        classes: Sequence[str] = (),
        samples_per_class: int | None = None,
        processes: int | None = None,
        again: bool = False,
        progress: Progress = silent,
    ) -> Stocking:
        """Slice each class ahead of orders, which then only pack; only what is missing is made.

        Interrupted at any moment, even by a kill, nothing that was finished is lost.

        Args:
            names: of learnwares; none: all that have samples of each of their classes.
            sizes: shares of the donor's extractor, out of those that it was stocked with.
            classes: only these; none: all.
            samples_per_class: the first k samples of each class, as in orders that say so; None: all of them.
            processes: how many may work at once, one thread each; 1: this process; None: one a core.
            again: slice and replace also what is stocked.

        Returns:
            What was made, what was there, and what failed while the rest went on.

        Raises:
            RequestError: unknown learnwares, classes or sizes, learnwares without samples; all problems at once.
            StoreError: the market can't be read.
        """
        return stock_fragments(
            self.store,
            names,
            sizes=sizes,
            classes=classes,
            samples_per_class=samples_per_class,
            processes=processes,
            again=again,
            progress=progress,
        )

    def stock_order(self, request: Request, *, again: bool = False, progress: Progress = silent) -> Stocking:
        """Slice ahead what an order slices when it is made, fronts that classes of one donor share included.

        Args:
            again: slice and replace also what is stocked.

        Raises:
            RequestError: the order is malformed, names unknown classes, or asks for subnets, which nobody slices.
            InfeasibleError: no plan keeps the budget.
            StoreError: the market can't be read.
        """
        return stock_order(self.store, request, again=again, progress=progress)

    def fragments(self, *names: str) -> list[dict[str, Any]]:
        """What is known of the stocked fragments of learnwares (none named: of all) in plain JSON, oldest first.

        Raises:
            StoreError: there is no such learnware.
        """
        return describe_fragments(self.store, names)

    def prune_fragments(self, *names: str) -> Pruned:
        """Remove fragments that no order will ask for again: of removed learnwares, older settings, older versions.

        Raises:
            RequestError: unknown learnwares; all of them at once.
        """
        return prune_fragments(self.store, names)

    def verify(self) -> list[str]:
        """Everything that is wrong with the market's files; empty where nothing is."""
        zoos = indices(self.store)
        return self.store.verify() + [text for name in zoos.names() for text in zoos.get(name).verify()]

    def plan(self, request: Request) -> Plans | TaskPlans:
        """Every plan for an order, from manifests alone; nothing is built.

        Raises:
            RequestError: the order is malformed or names unknown classes.
            InfeasibleError: no plan keeps the budget; names the floor and the nearest budget.
        """
        if by_supernet(self.store, request):
            return plan_tasks(self.store, request)
        plans = propose(check_order(request, self.store))
        if not plans.feasible:
            raise infeasible(plans)
        return plans

    def make(
        self, request: Request, out: str | Path, *, plan: Plan | None = None, progress: Progress = silent
    ) -> Artifact:
        """Build the model of an order into a folder, verified and explained; a call that was cut short goes on.

        Args:
            plan: build this plan instead of choosing one.

        Raises:
            RequestError: the order is malformed, or the folder holds something else.
            InfeasibleError: no plan keeps the budget.
            StoreError: a learnware or a file is missing or damaged.
            VerifyError: the built model does not do what it must.
        """
        if by_supernet(self.store, request):
            return make_task(self.store, request, Path(out), plan=plan, progress=progress)
        return make(self.store, request, Path(out), plan=plan, progress=progress)


def described_by(said: Mapping[str, Any], vocabulary: Vocabulary | None) -> Preprocessing | TextPreprocessing:
    """The preprocessing that a mapping says; of texts, what it leaves out is the vocabulary's.

    Raises:
        RequestError: every problem is named.
    """
    if said.get("kind") == "text" and vocabulary is None:
        raise RequestError(
            "preprocessing of texts needs a vocabulary: give the tokens in the order of their ids",
            where="vocabulary",
        )
    if said.get("kind") != "text" or vocabulary is None:
        return parse_preprocessing(said)
    own = {"vocabulary": vocabulary.digest, "n_tokens": vocabulary.size, "rule": vocabulary.rule}
    return parse_preprocessing({**own, **said})


def _example(described: Preprocessing | TextPreprocessing) -> Tensor:
    if isinstance(described, TextPreprocessing):
        return InputSpec((described.length,), "int64").example()
    return InputSpec((described.channels, *(described.size or ()))).example()
