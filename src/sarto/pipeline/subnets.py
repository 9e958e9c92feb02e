"""Subnets of stocked supernets: found for a task and a budget, cut, compared with the gated supernet, certified."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sarto.devices import count
from sarto.devices.profiling import Predictor
from sarto.engines.factory.costs import CostTable
from sarto.engines.factory.gates import lowest_limit
from sarto.engines.factory.openings import TaskOrders, counted
from sarto.engines.factory.search import Found, fewer, floor_costs, search, search_measured, widened
from sarto.engines.factory.subnets import (
    EQUAL,
    Expected,
    compared,
    cut,
    expected_together,
    gates_of,
    recalibrated,
    restricted,
    task_outputs,
)
from sarto.engines.factory.supernet import Supernet
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import ModelGraph, normalise
from sarto.market import Store
from sarto.pipeline.curves import cost_table
from sarto.pipeline.factory import open_supernet
from sarto.types import (
    Budget,
    Certificate,
    Cost,
    HeadNode,
    Plan,
    StockedSupernet,
    SubnetNode,
)
from sarto.types.profile import DeviceProfile

#: Name of the engine in plans and requests.
ENGINE = "factory"
#: Smaller subnets that are proposed beside the largest one, as shares of its open units.
SMALLER = (0.5, 0.25)
Tasks = tuple[frozenset[str], ...]


@dataclass(eq=False)
class ReadySupernet:
    """A supernet that was opened once and answers many orders.

    Attributes:
        profile: of the device that latency is predicted for; None: latency is not predicted.
    """

    manifest: StockedSupernet
    supernet: Supernet
    profile: DeviceProfile | None = None
    _tables: dict[tuple[int, bool], CostTable] = field(default_factory=dict)

    @classmethod
    def open(cls, store: Store, which: str, profile: DeviceProfile | None = None) -> ReadySupernet:
        """A supernet of a market, by name or id.

        Raises:
            StoreError: there is none, or its files are damaged.
        """
        return cls(*open_supernet(store, which), profile)

    @cached_property
    def gated(self) -> ModelGraph:
        """The backbone with gates, which subnets are compared with."""
        return self.supernet.gated()

    @cached_property
    def orders(self) -> TaskOrders:
        """In which order units open; each task is asked for once."""
        return TaskOrders(self.supernet)

    @cached_property
    def table(self) -> CostTable:
        """Costs of subnets, with all outputs and as the backbone reads images.

        Raises:
            RequestError: the profile is of another backbone.
        """
        return cost_table(self.supernet, self.profile)

    def costs(self, tasks: Tasks, *, timed: bool = True) -> CostTable:
        """Costs of subnets as delivered: normalisation in front, outputs of no task cut off; latency where timed.

        Raises:
            RequestError: the profile is of another backbone.
        """
        space = self.supernet.space
        asked = len(task_outputs(space, tasks)), timed  # which outputs they are costs nothing
        if asked not in self._tables:
            table = self.table if timed else cost_table(self.supernet, None)
            self._tables[asked] = table.delivered(lambda g: self.ready(restricted(space, g, range(asked[0]))))
        return self._tables[asked]

    @cached_property
    def is_timed(self) -> bool:
        """Whether there is a profile, and it says what subnets take."""
        try:
            return self.profile is not None and self.table is not None
        except RequestError:
            return False

    def known(self, budget: Budget) -> Budget:
        """A budget without the memory of a process, unless a profile of this backbone foretells it.

        What is built is measured.
        """
        if self.is_timed and self.profile is not None and self.profile.memory is not None:
            return budget
        return budget.replace(process_bytes=None)

    def find(
        self, tasks: Tasks, budget: Budget, measure: Callable[[ModelGraph], float] | None = None
    ) -> Found:
        """The largest subnet for tasks that keeps a budget.

        Args:
            measure: milliseconds of a model; used where latency is limited and there is no profile.

        Raises:
            InfeasibleError: the smallest subnet is over the budget; names the floor and the nearest budget.
            RequestError: a task is none of the space's, or latency is limited and can't be known.
        """
        budget = self.known(budget)
        if budget.latency_ms is None or self.profile is not None or measure is None:
            timed = budget.latency_ms is not None or self.is_timed
            return search(self.supernet, tasks, budget, self.costs(tasks, timed=timed), orders=self.orders)

        def taken(gates: Tensor) -> float:
            return measure(self.cut(gates, tasks))

        return search_measured(self.supernet, tasks, budget, self.costs(tasks), taken, orders=self.orders)[0]

    def found_again(self, gates: Tensor, tasks: Tasks, budget: Budget) -> Found | None:
        """What the search says of gates, where it is what finds them for a budget; None where it is not.

        Without a profile a latency does not count: what was measured then does not come again.
        """
        if self.profile is None:
            budget = budget.replace(latency_ms=None)
        try:
            best = self.find(tasks, budget)
            every = itertools.chain([best], self.smaller(tasks, best, budget))
            return next((found for found in every if torch.equal(found.gates, gates)), None)
        except (InfeasibleError, RequestError):
            return None

    def smallest(self, tasks: Tasks) -> Found:
        """The smallest subnet for tasks."""
        return self._at(tasks, self._floor)

    def smaller(self, tasks: Tasks, best: Found, budget: Budget) -> Iterator[Found]:
        """Subnets with a half and a quarter of the open units, in the assembler's order, where groups allow it.

        Of several tasks those are taken that open first in the nested order of their union; without such an order, the
        union of what each task opens at that share, where it is smaller than the best one. Where the device has a
        profile, with the units besides that add no predicted time, as far as the budget goes.
        """
        for share in SMALLER:
            found = self._smaller_by(tasks, share, best) if share * best.ratio >= self._floor else None
            if found is not None:
                if self.is_timed:
                    table = self.costs(tasks)
                    found = widened(
                        self.supernet, tasks, found, self.known(budget), table, orders=self.orders
                    )
                yield found

    def _smaller_by(self, tasks: Tasks, share: float, best: Found) -> Found | None:
        """The subnet with a share of the best one's units; None where tasks together have none that is smaller."""
        if len(tasks) == 1:
            return self._at(tasks, share * best.ratio)
        if self.supernet.assembler.settings.order == "nested":
            n_open = int(share * float(best.gates.sum()))
            found = fewer(self.supernet, tasks, n_open, orders=self.orders)
        else:
            found = self._at(tasks, share * best.ratio)
        return found if found.ratio < best.ratio else None

    @property
    def _floor(self) -> float:
        least = lowest_limit(self.supernet.layout, self.supernet.assembler.least)
        return min(1.0, least * (1 + 1e-6))

    def _at(self, tasks: Tasks, limit: float) -> Found:
        codes = torch.tensor([self.supernet.space.code(task) for task in tasks], dtype=torch.float32)
        gates = self.supernet.assembler.gates(codes, torch.full((len(codes),), limit)).amax(0)
        return Found(gates, float(gates.mean()), limit, 0)

    def cut(self, gates: Tensor, tasks: Tasks, rows: Sequence[int] | None = None) -> ModelGraph:
        """The static model of gates (units,), reading what the backbone reads.

        Args:
            rows: outputs that stay, in this order; None: those that the tasks tell apart.
        """
        return cut(self.supernet, gates, tasks, rows)

    def compared(self, gates: Tensor, graph: ModelGraph, rows: Sequence[int]) -> float:
        """Largest relative difference between a subnet and the gated supernet.

        Raises:
            VerifyError: it is too large.
        """
        return compared(self.supernet, self.gated, gates, graph, rows)

    def gates(self, node: SubnetNode) -> Tensor:
        """Gates (units,) of a node of a plan.

        Raises:
            RequestError: a task or a unit is none of this supernet's.
        """
        tasks = self.tasks(node.tasks)
        if node.keep:
            kept = {group: units for group, units in node.keep.items() if isinstance(units, tuple)}
            return gates_of(kept, self.supernet.layout)
        codes = torch.tensor([self.supernet.space.code(task) for task in tasks], dtype=torch.float32)
        limits = torch.full((len(codes),), float(node.limit or 1.0))
        return self.supernet.assembler.gates(codes, limits).amax(0)

    def tasks(self, given: Sequence[Sequence[str]]) -> Tasks:
        """Tasks of this supernet's space.

        Raises:
            RequestError: one is none; all problems at once.
        """
        space = self.supernet.space
        problems = [why for task in given for why in space.problems(task)]
        if problems:
            raise RequestError(f"no task of {space.name!r}: {problems[0]}", problems=problems)
        return tuple(frozenset(task) for task in given)

    def plan(self, tasks: Tasks, found: Found, classes: Sequence[str], samples: str | None = None) -> Plan:
        """The plan of a subnet that was found: its units by name, and a head of the wanted outputs."""
        space = self.supernet.space
        kept = self.supernet.selection(found.gates).kept
        nodes: dict[str, SubnetNode | HeadNode] = {
            "subnet": SubnetNode(
                of=self.manifest.id,
                tasks=tuple(tuple(p for p in space.properties if p in task) for task in tasks),
                keep={group: tuple(units) for group, units in kept.items()},
                samples=samples,
            )
        }
        if space.kind == "classification":
            nodes["out"] = HeadNode(of="subnet", kind="restrict", classes=tuple(classes))
        named = " and ".join(space.named(task) for task in tasks)
        told = self.expected(tasks, found.ratio).quality
        sure = f", {told:.1%} expected" if told is not None else ", accuracy not known"
        return Plan(
            nodes=nodes,
            out=list(nodes)[-1],
            predicted=self.cost(tasks, found, classes),
            engine=ENGINE,
            note=f"subnet of {self.manifest.name} for {named}, {found.ratio:.1%} of the units{sure}",
        )

    def cost(self, tasks: Tasks, found: Found, classes: Sequence[str]) -> Cost:
        """What a subnet costs: counted, but for latency and a process's memory, which its profile foretells."""
        graph = self.ready(self.cut(found.gates, tasks, self.rows(classes)))
        cost = count(graph).replace(basis="predicted")
        if not self.is_timed or self.profile is None:
            return cost
        cost = Predictor(self.profile).weighed(cost)
        low, middle, high = self.table.latency_ms(counted(found.gates[None], self.supernet.layout))[:, 0]
        return cost.replace(latency_ms=float(middle), latency_low_ms=float(low), latency_high_ms=float(high))

    def rows(self, classes: Sequence[str]) -> list[int]:
        """Places of answers among the outputs."""
        return [self.supernet.space.answers.index(cls) for cls in classes]

    def ready(self, graph: ModelGraph) -> ModelGraph:
        """A model as it reads images in [0, 1]: normalisation in front."""
        said = self.manifest.preprocessing
        return normalise(graph, said.mean, said.std)

    def classes(self, tasks: Tasks) -> tuple[str, ...]:
        """Answers of a model for tasks, in the order of the space."""
        space = self.supernet.space
        return tuple(space.answers[row] for row in task_outputs(space, tasks))

    def expected(self, tasks: Tasks, ratio: float, *, recalibrated: bool = False) -> Expected:
        """Quality to expect of one model for tasks, and how that is known."""
        return expected_together(
            self.supernet.space, self.manifest.qualities, tasks, ratio, recalibrated=recalibrated
        )

    def certificate(
        self,
        node: SubnetNode,
        gates: Tensor,
        difference: float,
        *,
        found: Found | None,
        budget: Budget,
        measured: Cost | None,
        predicted: Cost | None = None,
        samples: int = 0,
    ) -> Certificate:
        """What is promised of a delivered subnet.

        Args:
            difference: from the gated supernet.
            measured: cost of the delivered model.
            samples: that batch norm statistics were taken from.
        """
        space, manifest = self.supernet.space, self.manifest
        tasks, ratio = self.tasks(node.tasks), float(gates.double().mean())
        told = self.expected(tasks, ratio, recalibrated=node.samples is not None)
        limits = budget.limits()
        slack = {
            name: 1 - float(value) / limit
            for name, limit in limits.items()
            if measured is not None and (value := getattr(measured, name)) is not None
        }
        known = [name for name in self.known(budget).limits() if name != "latency_ms" or self.is_timed]
        table = self.costs(tasks, timed=self.is_timed)
        return Certificate(
            supernet=manifest.id,
            supernet_name=manifest.name,
            tasks=tuple(space.named(task) for task in tasks),
            seen=all(task in space.seen for task in tasks),
            ratio=ratio,
            limit=found.limit if found is not None else node.limit,
            filled=found.filled if found is not None else 0,
            expected=told.quality,
            expected_basis=told.basis,
            nearest=told.nearest,
            predicted=predicted,
            measured=measured,
            floor=floor_costs(self.supernet, tasks, table, known, self.orders) if known else {},
            slack=slack,
            difference=difference,
            difference_limit=EQUAL,
            recalibrated=samples,
            hashes={**manifest.hashes(), "gates": _hash(gates)},
        )


@dataclass
class Subnets:
    """Supernets of a market that were opened for an order, each once."""

    store: Store
    profile: DeviceProfile | None = None
    _open: dict[str, ReadySupernet] = field(default_factory=dict)

    def get(self, which: str) -> ReadySupernet:
        """An opened supernet, by name or id.

        Raises:
            StoreError: there is none, or its files are damaged.
        """
        id_ = self.store.supernets.get(which).id
        if id_ not in self._open:
            self._open[id_] = ReadySupernet.open(self.store, id_, self.profile)
        return self._open[id_]

    def graph(self, node: SubnetNode, inputs: Tensor | None = None) -> ModelGraph:
        """The model of a node, with all outputs, as it reads images in [0, 1]; equal to the gated supernet.

        Args:
            inputs: images in [0, 1] that batch norm statistics are taken from; None leaves those of training.

        Raises:
            VerifyError: it differs from the gated supernet.
        """
        held = self.get(node.of)
        gates = held.gates(node)
        rows = list(range(len(held.supernet.space.answers)))
        graph = held.cut(gates, (), rows)
        held.compared(gates, graph, rows)
        made = held.ready(graph)
        return made if inputs is None else recalibrated(made, inputs)


def subnet_of(plan: Plan) -> SubnetNode | None:
    """The subnet that a plan is, but for the outputs that it keeps; None where it is more or something else."""
    subnets = [node for node in plan.nodes.values() if isinstance(node, SubnetNode)]
    heads = sum(isinstance(node, HeadNode) and node.kind == "restrict" for node in plan.nodes.values())
    return subnets[0] if len(subnets) == 1 and heads == len(plan.nodes) - 1 <= 1 else None


def _hash(gates: Tensor) -> str:
    bits = "".join("1" if gate > 0.5 else "0" for gate in gates.tolist())
    return f"sha256:{hashlib.sha256(bits.encode()).hexdigest()}"


def certificate_sentences(found: Certificate) -> Mapping[str, str]:
    """What a certificate says, in words: a short name -> a sentence."""
    named = " and ".join(found.tasks)
    told = {}
    if found.expected is not None:
        trained = "trained" if found.seen else "never trained"
        told["expected"] = (
            f"{found.expected:.1%} expected on {named}, a task that was {trained} ({found.expected_basis})."
        )
    else:
        told["expected"] = f"Nothing is known of the accuracy on {named}: {found.expected_basis}."
    if not found.seen and found.nearest:
        near = ", ".join(
            f"{name} ({far:.0%} of the properties differ)" for name, far in found.nearest.items()
        )
        told["nearest"] = f"Nearest trained tasks: {near}."
    told["units"] = (
        f"{found.ratio:.2%} of the gated units of {found.supernet_name}"
        + (f", {found.filled} of them added to use up the budget" if found.filled else "")
        + f"; equal to the gated supernet within {found.difference:.1g}."
    )
    if found.slack:
        told["slack"] = "Left of the budget: " + ", ".join(
            f"{name} {share:.1%}" for name, share in found.slack.items()
        )
    if found.recalibrated:
        told["recalibrated"] = (
            f"Batch norm statistics are those of {found.recalibrated} samples of the order."
        )
    return told
