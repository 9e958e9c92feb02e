"""An order: which classes, on which device, at what cost; and what it becomes once checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sarto.errors import RequestError
from sarto.types.cost import Budget
from sarto.types.device import Device
from sarto.types.fields import (
    AboveZero,
    AtLeastZero,
    FilePath,
    Flag,
    Frozen,
    Name,
    Names,
    Positive,
    Several,
    Sha,
    Share,
    Text,
    Whole,
    twice,
)
from sarto.types.nodes import Repair
from sarto.types.paper import PaperSettings
from sarto.types.value import Value


class Task(Value):
    """What the model must do: tell classes apart, or a task of a task space that a stocked supernet was trained for.

    Attributes:
        classes: names as the market knows them, in the order of the model's outputs: "cat", or
            "learnware:cat" to say whose cat is meant.
        properties: what the task is made of: [exactly_2, digit_7].
        also: further tasks that the same model must do, each by its properties.
        space: name of the task space that is meant; None: any that has these properties.
        supernet: name or id of the supernet that is meant; None: any.
    """

    classes: Names = ()
    properties: Names = ()
    also: Several[Names] = ()
    space: Name | None = None
    supernet: Name | None = None

    @model_validator(mode="after")
    def _check_task(self) -> Task:
        problems = [f".classes: {name!r} is named twice; name it once" for name in twice(self.classes)]
        problems += [
            f".classes[{place}]: {name!r} is half a name; write class or learnware:class"
            for place, name in enumerate(self.classes)
            if name[0] == ":" or name[-1] == ":"
        ]
        problems += [f".properties: {name!r} is named twice" for name in twice(self.properties)]
        if not self.classes and not self.properties:
            problems.append(".classes: name the classes to tell apart, or under .properties those of a task")
        if self.classes and self.properties:
            problems.append(".properties: a task is given by classes or by properties, not by both")
        extra = [name for name in ("also", "space", "supernet") if getattr(self, name)]
        if self.classes and not self.properties and extra:
            problems.append(f".{extra[0]}: goes with properties, not with classes")
        problems += [
            f".also[{i}]: a task has properties; give some" for i, t in enumerate(self.also) if not t
        ]
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self

    @property
    def tasks(self) -> tuple[tuple[str, ...], ...]:
        """Every task that was asked for, by its properties; none where classes were."""
        return (self.properties, *self.also) if self.properties else ()

    @property
    def title(self) -> tuple[str, ...]:
        """The classes, or the tasks, as tables show them."""
        return self.classes or tuple("+".join(task) for task in self.tasks)

    @property
    def wanted(self) -> tuple[tuple[str | None, str], ...]:
        """For each class the learnware that it is asked from (None: any) and its name there."""
        parts = [name.rpartition(":") for name in self.classes]
        return tuple((learnware or None, cls) for learnware, _, cls in parts)


class DonorRules(Value):
    """What an order asks of the models that its parts come from; every plan keeps it, whichever engine proposes it.

    Attributes:
        must: names or ids of learnwares that have to be used.
        avoid: names or ids of learnwares that may not be.
        least, most: number of different learnwares.
        allow_licences: the only licences allowed, none: any; a learnware that states none is not allowed then.
        deny_licences: licences that are not allowed; a learnware that states none is.
        differ: blocks in which each chain of blocks differs from those proposed before it.
    """

    must: Names = ()
    avoid: Names = ()
    least: Positive = 1
    most: Positive | None = None
    allow_licences: Names = ()
    deny_licences: Names = ()
    differ: Positive = 1

    @model_validator(mode="after")
    def _check_rules(self) -> DonorRules:
        problems = [
            f".{field}: {name!r} is named twice"
            for field in ("must", "avoid")
            for name in twice(getattr(self, field))
        ]
        problems += [
            f".avoid: {name!r} must be used too; one of the two" for name in self.must if name in self.avoid
        ]
        both = {name.casefold() for name in self.allow_licences} & {
            name.casefold() for name in self.deny_licences
        }
        problems += [f".deny_licences: {name!r} is allowed too; one of the two" for name in sorted(both)]
        needed = max(self.least, len(self.must))
        if self.most is not None and self.most < needed:
            why = (
                f"{len(self.must)} must be used"
                if needed == len(self.must)
                else f".least asks for {self.least}"
            )
            problems.append(f".most: is {self.most}, but {why}")
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self

    def allows(self, licence: str) -> bool:
        """Whether a learnware of this licence may be used; licences are compared as written, in any case of letters."""
        said = licence.strip().casefold()
        if self.allow_licences and said not in {name.casefold() for name in self.allow_licences}:
            return False
        return said not in {name.casefold() for name in self.deny_licences}


class Parting(Value):
    """How the models of an indexed zoo are parted into blocks, for chains of them.

    Attributes:
        blocks: of each model; "steady": as many, 2 to 6, as change least with the probe images. None: 4, or fewer where
            a model has too few cut points.
        skip: a model may have no block in a set, which counts as one whose input and output are on average so similar
            (CKA) to the set's: at -1 hardly anybody skips, at 1 whoever can. None: each model has a block in every set.
    """

    blocks: Annotated[int, Field(ge=2, le=64)] | Literal["steady"] | None = None
    skip: Annotated[float, Field(ge=-1.0, le=1.0)] | None = None


class Training(Value):
    """How the best chain of blocks of an order is trained; kept where samples that were left out say that it helps.

    Attributes:
        epochs: times that the images are seen.
        towards: the features of the chain's last donor, labels unread; or labels. None: labels where the order gives
            labelled samples of its own, else features.
        scope: what changes: the stitches; these, the first layer and the classifier; everything.
        batch: images a step.
        rate: largest step size of AdamW; None: a small one, by scope.
    """

    epochs: Positive
    towards: Literal["features", "labels"] | None = None
    scope: Literal["stitches", "frozen", "full"] = "stitches"
    batch: Positive = 64
    rate: AboveZero | None = None


class RepairChanges(Value):
    """What an order changes of the repair of slices; None leaves what the method does. See `Repair`."""

    lam: AtLeastZero | None = None
    wpos: Share | None = None
    sequential: Flag | None = None
    rivals: Positive | None = None
    towards: Literal["kept", "zero"] | None = None
    recalibrate: Flag | None = None
    polish: Flag | None = None

    def of(self, repair: Repair) -> Repair:
        """The repair with the changes."""
        return repair.replace(**self.model_dump(exclude_none=True))


class Request(Value):
    """An order as the user gives it.

    Attributes:
        samples: path of the order's own samples; None takes the market's.
        heldout: path of samples that nothing but the report reads.
        samples_per_class: use only the first k samples of each class.
        engines: who may propose plans.
        baselines: what the engine of that name trains for the report: finetune, camkd, netgraft, grail.
        seed: of everything that is drawn.
        method: how fragments are made: solved in closed form, or trained as the paper does.
        paper: the numbers of the paper's method; None takes its defaults.
        repair: what changes of the closed form's repair, for ablations or to polish; fragments are then made anew.
        recalibrate: of a subnet: take the statistics of batch norms anew from the order's samples, labels unread.
        donors: which models parts may come from, and how many.
        parting: into what blocks the models of an indexed zoo are parted, for its chains.
        train: to train the best chain of blocks a little; None: nothing is trained.
    """

    task: Task
    budget: Budget = Budget()
    device: Device = Device()
    samples: FilePath | None = None
    heldout: FilePath | None = None
    samples_per_class: Positive | None = None
    engines: Annotated[Names, Field(min_length=1)] = ("slicepack", "factory", "reassembly", "baselines")
    baselines: Names = ("finetune",)
    seed: Whole = 0
    name: Name | None = None
    method: Literal["closed_form", "paper"] = "closed_form"
    paper: PaperSettings | None = None
    repair: RepairChanges = RepairChanges()
    recalibrate: Flag = False
    donors: DonorRules = DonorRules()
    parting: Parting = Parting()
    train: Training | None = None

    @model_validator(mode="after")
    def _check_method(self) -> Request:
        problems = []
        if self.paper is not None and self.method != "paper":
            problems.append(
                ".paper: these numbers are of the paper's method; give method: paper, or leave them out"
            )
        if self.paper is not None and self.paper.select != "rate":
            problems.append(
                ".paper.select: an order is planned by size, so its units are chosen by rate; a threshold decides "
                "sizes by itself"
            )
        if self.paper is not None and (self.paper.beta != PaperSettings().beta or self.paper.streams):
            problems.append(
                ".paper.beta, .paper.streams: an order is planned by size, so its layers keep as many units as the "
                "closed form does at that size; give a budget, or a plan file with these numbers"
            )
        if self.repair != RepairChanges() and self.method == "paper":
            problems.append(
                ".repair: the paper's method trains its repair; give method: closed_form, or leave it out"
            )
        if self.recalibrate and self.samples is None:
            problems.append(
                ".recalibrate: takes statistics from the order's samples; give their path under .samples"
            )
        if self.train is not None and "reassembly" not in self.engines:
            problems.append(".train: only chains of blocks are trained; name reassembly under .engines")
        if self.parting != Parting() and "reassembly" not in self.engines:
            problems.append(".parting: only chains have blocks; name reassembly under .engines")
        if self.parting != Parting() and self.task.properties:
            problems.append(".parting: a task by its properties has no chains of blocks; leave it out")
        if self.train is not None and self.task.properties:
            problems.append(
                ".train: a task by its properties has a supernet, no chains of blocks; leave it out"
            )
        if self.task.properties and self.donors != DonorRules():
            problems.append(
                ".donors: a task by its properties has a supernet, no donors; name it under .task.supernet"
            )
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self


class ClassOffer(Value):
    """A learnware that knows a wanted class.

    Attributes:
        cls: the class.
        learnware: its id.
        label: which output of the learnware the class is.
        skill: recall of the class, when it was measured on samples that the learnware was not trained on.
    """

    cls: Name
    learnware: Sha
    label: Whole
    skill: Share | None = None


class Requirement(Value):
    """An order that was checked against the market, and is complete.

    Attributes:
        offers: the chosen donor of each wanted class that is known, in the order of `request.task.classes`.
        others: who else knows these classes.
        new: wanted classes that no stocked learnware knows; the order's own samples have them.
        donors: with new classes: the learnwares whose features new heads read, and that one model can read for.
        apart: those that read the samples too, but not together with `donors`.
        n_samples: samples of each class that the order may use.
        samples_digest: content hash of these samples; None where none were needed.
        labelled_by: whose word their labels are: the order's (or the learnwares' own), or what the donors decide for
            images that came without.
        notes: what of the samples that were given is not used, and what was asked for and is not there.
    """

    request: Request
    offers: Several[ClassOffer]
    others: Several[ClassOffer] = ()
    new: Names = ()
    donors: Several[Sha] = ()
    apart: Several[Sha] = ()
    n_samples: Frozen[Name, Whole] = Field(default_factory=dict, validate_default=True)
    samples_digest: Sha | None = None
    labelled_by: Literal["order", "donors"] = "order"
    notes: Several[Text] = ()

    @model_validator(mode="after")
    def _check_offers(self) -> Requirement:
        wanted = [cls for cls in self.classes if cls not in self.new]
        offered = [offer.cls for offer in self.offers]
        problems = []
        if offered != wanted:
            problems.append(
                f".offers: one for each wanted class, in that order, was expected ({', '.join(wanted)}); "
                f"got {', '.join(offered) or 'none'}"
            )
        problems += [f".new: {cls!r} is not wanted" for cls in self.new if cls not in self.classes]
        if bool(self.new) != bool(self.donors):
            problems.append(".donors: new classes need donors, and go with nothing else")
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The wanted classes, as the finished model names them."""
        return tuple(cls for _, cls in self.request.task.wanted)
