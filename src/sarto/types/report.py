"""The report of an order: everything that a page about it shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sarto.errors import RequestError
from sarto.types.cost import LIMITS, Cost, Limit
from sarto.types.device import Precision
from sarto.types.factory import Certificate
from sarto.types.fields import (
    AtLeastZero,
    Flag,
    Frozen,
    Name,
    Names,
    Number,
    Positive,
    Several,
    Sha,
    Share,
    Text,
    Version,
    Whole,
    twice,
)
from sarto.types.plan import Plan
from sarto.types.request import Request, Requirement
from sarto.types.value import Value


class Interval(Value):
    """Where a number lies, and how sure that is.

    Attributes:
        low: in the unit of the number.
        high: in the unit of the number.
        level: share of intervals like this one that hold the truth: 0.9 is nine times of ten.
        method: how it was made: "wilson", "bootstrap over samples", ...
    """

    low: Number
    high: Number
    level: Annotated[Share, Field(gt=0, lt=1)]
    method: Name

    @model_validator(mode="after")
    def _check_ends(self) -> Interval:
        if self.low > self.high:
            raise RequestError(f"low <= high was expected, got {self.low} and {self.high}")
        return self


class Row(Value):
    """One model of the comparison: the pick, or what the user would do otherwise.

    Attributes:
        name: as the table shows it.
        role: what it is there for.
        plan_key: what was built, where a plan says it.
        accuracy_loto: share right on the order's samples, one of each class left out; None: not measured.
        interval: of `accuracy_loto`.
        accuracy_heldout: share right on samples that nothing but this report read.
        heldout_interval: of `accuracy_heldout`.
        cost: measured, or predicted where it was not built (`cost.basis` says which).
        samples_used: labelled samples that went into it.
        note: what the numbers don't say.
    """

    name: Name
    role: Literal["pick", "donor", "ensemble", "probe", "finetune", "baseline", "trivial", "control", "plan"]
    plan_key: Sha | None = None
    accuracy_loto: Share | None = None
    interval: Interval | None = None
    accuracy_heldout: Share | None = None
    heldout_interval: Interval | None = None
    cost: Cost | None = None
    samples_used: Whole | None = None
    note: Text = ""


class Comparison(Value):
    """The pick against one other row, on the same samples.

    Attributes:
        row: name of the other row.
        basis: which samples.
        gap: accuracy of the pick minus the other's, in shares (0.01 is one point).
        interval: of the gap.
        p_value: of the paired test, after the correction for several comparisons.
        verdict: of the pick.
        samples_needed: labelled samples that would tell the two apart; None where they are told apart.
    """

    row: Name
    basis: Literal["loto", "heldout"]
    gap: Annotated[Number, Field(ge=-1, le=1)]
    interval: Interval | None = None
    p_value: Share | None = None
    verdict: Literal["better", "worse", "cannot be told apart"]
    samples_needed: Positive | None = None


class ClassScore(Value):
    """How well one class is recognised.

    Attributes:
        cls: the class.
        learnware: id of the donor that it came from.
        donor: the donor's name.
        n_samples: samples of the class that the order used.
        recall_loto: share of them recognised when left out.
        n_heldout: samples of the class that only the report read.
        recall_heldout: share of those recognised.
        donor_skill: what the donor's manifest says of the class.
    """

    cls: Name
    learnware: Sha | None = None
    donor: Name | None = None
    n_samples: Whole
    recall_loto: Share | None = None
    n_heldout: Whole | None = None
    recall_heldout: Share | None = None
    donor_skill: Share | None = None


class Confusion(Value):
    """What was taken for what.

    Attributes:
        classes: of the rows (what it was) and of the columns (what the model said).
        counts: number of samples, one tuple a row.
        basis: which samples.
    """

    classes: Names
    counts: Several[Several[Whole]]
    basis: Literal["loto", "heldout"]

    @model_validator(mode="after")
    def _check_square(self) -> Confusion:
        sizes = [len(self.counts), *(len(row) for row in self.counts)]
        if any(size != len(self.classes) for size in sizes):
            raise RequestError(
                f".counts: {len(self.classes)} rows of {len(self.classes)} counts were expected"
            )
        return self


class Rejection(Value):
    """When the model says "none of these classes".

    Attributes:
        threshold: novelty above which it does; 1 is the usual distance to a class.
        target: share of the classes' own samples that may be refused.
        false_reject: share of them that is expected to be, from the order's samples, each left out of its class.
        n_samples: how many samples that was measured on.
        detected: share of outsiders that are refused; None where there were none to try.
        n_outsiders: donors' samples of classes that were not ordered; they chose nothing.
        outsiders: these classes.
    """

    threshold: AtLeastZero
    target: Share
    false_reject: Share
    n_samples: Whole
    detected: Share | None = None
    n_outsiders: Whole = 0
    outsiders: Names = ()


class Part(Value):
    """Where parameters went.

    Attributes:
        name: as the table shows it: a donor and the classes of its fragment, or "head".
        learnware: id of the donor; None for what was made here.
        classes: whose fragment it is.
        params: trainable parameters; the parts add up to the model's.
        span: of a block: the shares of its donor's FLOPs that lie before it begins and before it ends.
    """

    name: Name
    learnware: Sha | None = None
    classes: Names = ()
    params: Whole
    span: tuple[Share, Share] | None = None


class Check(Value):
    """A promise that was checked on the delivered model.

    Attributes:
        value: what was found; None where it is a matter of yes or no.
        limit: what was allowed.
        detail: how it was checked, or what to do where it failed.
    """

    name: Name
    value: Number | None = None
    limit: Number | None = None
    ok: Flag
    detail: Text = ""


class DeviceFile(Value):
    """The file for the runtime and precision of an order, run there and compared with eager.

    Attributes:
        name: of the file in the artifact's folder; its sidecar and what belongs to it lie beside it.
        size_bytes: of the file and what belongs to it.
        difference: largest difference from eager, relative to the largest output.
        error: root mean square of the differences over that of the outputs.
        agreement: share of inputs on which both decide alike; None where outputs are no decisions.
        accuracy: share of the labelled samples that the file gets right, and `accuracy_eager` that eager does.
        n_samples: real samples that were compared.
    """

    name: Name
    format: Name
    precision: Precision
    size_bytes: Whole
    difference: AtLeastZero
    error: AtLeastZero
    agreement: Share | None = None
    accuracy: Share | None = None
    accuracy_eager: Share | None = None
    n_samples: Whole = 0


class Donor(Value):
    """A learnware that parts came from."""

    learnware: Sha
    name: Name
    licence: Text = ""
    origin: Text = ""
    graph_hash: Sha
    weights_hash: Sha | None = None
    samples_hash: Sha | None = None
    classes: Names = ()


def licences_of(lineage: Iterable[Donor]) -> tuple[str, ...]:
    """The licences of donors, each once, sorted; "not stated" where one states none."""
    return tuple(sorted({donor.licence.strip() or "not stated" for donor in lineage}))


class Environment(Value):
    """Where it was built and measured.

    Attributes:
        versions: of sarto, python, torch, ...
        threads: that the measurements used.
        machine: processor and system, in words.
    """

    versions: Frozen[Name, Text]
    threads: Positive
    machine: Text


#: How a number was known before a model was measured.
Basis = Literal["predicted", "counted", "counted in the built model", "counted in single precision"]


class CostLine(Value):
    """One cost number: what was predicted and within which bounds, what came out, what was allowed.

    Attributes:
        basis: of `predicted`. Only what a device profile says is a prediction; all else is counted, on the plan or, if
            it says nothing, on the built model. Of a device's file in another precision the plan knows no size.
    """

    name: Limit
    basis: Basis = "predicted"
    predicted: Number | None = None
    predicted_low: Number | None = None
    predicted_high: Number | None = None
    measured: Number | None = None
    budget: Number | None = None

    @property
    def foretold(self) -> float | None:
        """What was predicted or counted of the same thing as what was measured, before it was built."""
        return self.predicted if self.basis in ("predicted", "counted") else None


class Report(Value):
    """What came of an order.

    Attributes:
        report: version of this layout.
        created: when, ISO 8601.
        reads: what one sample is.
        plan: what was built.
        predicted: cost before building; that of the built model, without latency, where the plan says none (its basis
            is "measured" then).
        measured: cost of the delivered model.
        rows: the pick first, then donors, baselines and controls, all measured in one run.
        comparisons: the claims, fixed before building.
        per_class: one for each class of the task, in its order.
        confusion: on held-out samples where there are any, otherwise on the order's own.
        rejection: none of the above; None where it can't be known.
        where_params: parts of the model and their parameters.
        checks: promises that were checked; a delivered model has none that failed.
        lineage: learnwares that parts came from.
        licences: of all of them, each once; one that is not stated is "not stated".
        hashes: of what was delivered: file or object -> content hash.
        environment: where it was built and measured.
        seconds: wall time of each hop of the order.
        sentences: the result in words.
        not_tried: what was left out of the comparison, and why.
        certificate: of a model that is a subnet of a supernet.
        device_file: what the order's device runs, where that is neither the graph nor the ONNX file.
        latency_raw_ms: milliseconds as they were, where the measured cost has them at the speed of the profile.
    """

    report: Version = 1
    created: Text = ""
    reads: Literal["image", "text"] = "image"
    request: Request
    requirement: Requirement
    plan: Plan
    predicted: Cost
    measured: Cost
    rows: Several[Row]
    comparisons: Several[Comparison] = ()
    per_class: Several[ClassScore] = ()
    confusion: Confusion | None = None
    rejection: Rejection | None = None
    where_params: Several[Part] = ()
    checks: Several[Check] = ()
    lineage: Several[Donor] = ()
    licences: Several[Text] = ()
    hashes: Frozen[Name, Sha] = Field(default_factory=dict, validate_default=True)
    environment: Environment
    seconds: Frozen[Name, AtLeastZero] = Field(default_factory=dict, validate_default=True)
    sentences: Several[Text] = ()
    not_tried: Several[Text] = ()
    certificate: Certificate | None = None
    device_file: DeviceFile | None = None
    latency_raw_ms: AtLeastZero | None = None

    @model_validator(mode="after")
    def _check_rows(self) -> Report:
        names = [row.name for row in self.rows]
        problems = [f".rows: {name!r} is named twice; name each row once" for name in twice(names)]
        picks = [row.name for row in self.rows if row.role == "pick"]
        if len(picks) != 1:
            problems.append(f".rows: one row is the pick, got {', '.join(picks) or 'none'}")
        problems += [
            f".comparisons[{place}].row: no row {found.row!r}"
            for place, found in enumerate(self.comparisons)
            if found.row not in names
        ]
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self

    @property
    def pick(self) -> Row:
        """The row of the delivered model."""
        return next(row for row in self.rows if row.role == "pick")

    def cost_lines(self) -> Iterator[CostLine]:
        """Predicted beside measured, with the budget, for each cost number."""
        said, bounds = self.predicted, dict[Limit, tuple[float | None, float | None]]()
        bounds["latency_ms"] = (said.latency_low_ms, said.latency_high_ms)
        bounds["process_bytes"] = (said.process_low_bytes, said.process_high_bytes)
        for name in LIMITS:
            numbers = [getattr(one, name) for one in (said, self.measured, self.request.budget)]
            if name == "process_bytes" and numbers == [None] * 3:
                continue
            low, high = bounds.get(name, (None, None))
            yield CostLine(
                name=name,
                basis=self._basis(name),
                predicted=numbers[0],
                predicted_low=low,
                predicted_high=high,
                measured=numbers[1],
                budget=numbers[2],
            )

    def _basis(self, name: Limit) -> Basis:
        if name in ("latency_ms", "process_bytes"):
            return "predicted"
        if name == "size_bytes" and self.device_file is not None and self.device_file.precision != "float32":
            return "counted in single precision"
        return "counted" if self.predicted.basis == "predicted" else "counted in the built model"
