"""From a request to a requirement: who provides each class, and on which samples everything is decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sarto.engines.baselines import NAMES
from sarto.errors import RequestError, ShapeError, suggest
from sarto.market import Intake, Labelled, Samples, Store, TextSamples, read_samples
from sarto.pipeline.donor_rules import Source, allowed, check_rules, meant, why_not
from sarto.pipeline.indexing import indices
from sarto.pipeline.intakes import conform, intake_of, joint_intake, joint_problems
from sarto.pipeline.new_classes import find_new
from sarto.pipeline.predicting import PlanPredictor, measured_elsewhere, profile_of
from sarto.pipeline.reassembling import ENGINE as CHAINS
from sarto.pipeline.reassembling import STUDENT, Chains
from sarto.pipeline.subnets import ENGINE, Subnets
from sarto.pipeline.unlabelled import decide, without_labels
from sarto.types import ClassOffer, DonorRules, Learnware, Request, Requirement, StockedSupernet
from sarto.types.profile import DeviceProfile


@dataclass(frozen=True, eq=False)
class Order:
    """A checked request with everything that planning and building need.

    Attributes:
        samples: of the wanted classes, in their order; every choice is made on them and on nothing else.
        donor_samples: learnware id -> the samples that its slices are fitted on: its own, of all its classes, or the
            order's where it came without.
        learnwares: manifests of the market that the order may use, by id.
        supernets: those that it may use, by id.
        intakes: learnware id -> what the donor reads; with new classes of all that read the order's samples.
        intake: what a model of all donors reads.
        predictor: of latency and memory on the order's device; None where it names no profile.
        subnets: the market's supernets, for plans with subnets.
        chains: the market's indexed zoos, for plans with chains of blocks.
        heldout: samples of the wanted classes that only the report reads; None where none are given.
    """

    requirement: Requirement
    samples: Labelled
    donor_samples: Mapping[str, Labelled]
    learnwares: Mapping[str, Learnware]
    intakes: Mapping[str, Intake]
    intake: Intake
    predictor: PlanPredictor | None = None
    subnets: Subnets | None = None
    chains: Chains | None = None
    supernets: Mapping[str, StockedSupernet] = field(default_factory=dict)
    heldout: Labelled | None = None

    @property
    def sources(self) -> dict[str, Source]:
        """Everything that a plan of the order may take parts from, by id."""
        return {**self.learnwares, **self.supernets}

    @property
    def request(self) -> Request:
        return self.requirement.request

    @property
    def classes(self) -> tuple[str, ...]:
        """The wanted classes, as the finished model names them."""
        return self.requirement.classes

    @property
    def donors(self) -> tuple[Learnware, ...]:
        """The learnwares that provide the classes, each once, in the order of the task.

        With new classes those whose features new heads read, as far as one model can read for them.
        """
        ids = self.requirement.donors or dict.fromkeys(offer.learnware for offer in self.requirement.offers)
        return tuple(self.learnwares[id_] for id_ in ids)


def check_order(request: Request, store: Store, taken: Mapping[str, str | None] | None = None) -> Order:
    """The order, complete and consistent.

    A class that several learnwares know is taken from one that must be used, else from the one with the best measured
    skill on it. A class that nobody knows is new where the order's own samples have it: a new head tells it apart.

    Args:
        taken: class -> id of the learnware that it was taken from before, and is again, None where it was new; of
            others, as said above.

    Raises:
        RequestError: unknown classes or learnwares (with suggestions), classes without any samples, new ones with too
            few, unreadable or unfitting samples, held-out samples that are the order's or an index's probe images,
            donors that read different images; all problems at once.
    """
    learnwares = {learnware.id: learnware for learnware in store.learnwares()}
    problems: list[str] = []
    offers: list[ClassOffer] = []
    others: list[ClassOffer] = []
    if not learnwares:
        raise RequestError("the market is empty; stock a model with `sarto add`", where=str(store.path))
    every = learnwares
    check_rules([*every.values(), *store.supernets], request.donors, problems)
    learnwares = allowed(every.values(), request.donors)
    musts = meant(learnwares.values(), request.donors.must)
    names = [cls for _, cls in request.task.wanted]
    unknown = dict[str, str]()
    problems += [
        f"task.classes: {name!r} is asked from two learnwares; one model tells each class apart once: order it plainly "
        f"({name}) where both mean the same, or stock one of them under another class name where they don't"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    for place, (whose, cls) in enumerate(request.task.wanted):
        first = (taken or {}).get(cls) or next((item.id for item in musts if cls in item.classes), None)
        was_new = taken is not None and taken.get(cls, "") is None
        found = f"no model knew {cls!r}" if was_new else _offers(cls, whose, learnwares, first)
        if isinstance(found, str):
            refused = None if was_new else _refused(cls, whose, every, request.donors)
            if refused is None and whose is None:
                unknown[cls] = f"task.classes[{place}]: {found}"
            else:
                problems.append(f"task.classes[{place}]: {refused or found}")
            continue
        offers.append(found[0])
        others.extend(found[1:])
    if len(names) < 2:
        problems.append(
            f"task.classes: {names[0]!r} alone leaves nothing to tell apart; order at least two classes"
        )
    new = find_new(request, unknown, store, learnwares, problems)
    _check_engines(request, problems)
    profile = _profile(request, store, problems)
    if problems:
        raise RequestError(problems[0], problems=problems)
    if new is None:
        donors = [learnwares[id_] for id_ in dict.fromkeys(offer.learnware for offer in offers)]
        problems += joint_problems(donors)
        if problems:
            raise RequestError(problems[0], problems=problems)
        intakes = {donor.id: intake_of(store, donor) for donor in donors}
    else:
        donors, intakes = list(new.together), dict(new.intakes)
    intake = joint_intake([(donor, intakes[donor.id]) for donor in donors])
    notes = measured_elsewhere(profile, request.device)
    samples = _samples(request, names, offers, learnwares, store, intake, problems, notes)
    if problems or samples is None:
        raise RequestError(problems[0], problems=problems)
    if new is not None:
        notes.append(new.note(samples))
    requirement = Requirement(
        request=request,
        offers=tuple(offers),
        others=tuple(others),
        new=new.names if new is not None else (),
        donors=tuple(donor.id for donor in donors) if new is not None else (),
        apart=tuple(donor.id for donor in new.apart) if new is not None else (),
        n_samples=samples.counts,
        samples_digest=samples.digest,
        labelled_by="donors" if without_labels(request) else "order",
        notes=tuple(notes),
    )
    rivals, left_out = _rivals(donors, others, learnwares, store, intake) if new is None else ([], [])
    intakes |= {donor.id: intake_of(store, donor) for donor in rivals}
    requirement = requirement.replace(notes=(*requirement.notes, *left_out))
    donor_samples = {id_: _donor_samples(learnwares[id_], samples, store, request) for id_ in intakes}
    if "slicepack" in request.engines and new is None:
        told = _without_samples([learnwares[id_] for id_ in intakes])
        requirement = requirement.replace(notes=(*requirement.notes, *told))
    # With new classes any of the readers may be delivered alone.
    read = [intake] if new is None else [intakes[donor.id] for donor in (*donors, *new.apart)]
    heldout = _heldout(request, names, read, [samples, *donor_samples.values()], store)
    predictor = PlanPredictor(profile, store) if profile is not None else None
    subnets = Subnets(store, profile)
    return Order(
        requirement,
        samples,
        donor_samples,
        learnwares,
        intakes,
        intake,
        predictor,
        subnets,
        Chains(store),
        allowed(store.supernets, request.donors),
        heldout,
    )


def _profile(request: Request, store: Store, problems: list[str]) -> DeviceProfile | None:
    try:
        return profile_of(request.device, store)
    except RequestError as error:
        problems += error.problems or (str(error),)
        return None


def _refused(
    cls: str, whose: str | None, learnwares: Mapping[str, Learnware], rules: DonorRules
) -> str | None:
    """Why those that know a class may not be used; None where nobody who knows it is refused."""
    why = [
        f"{item.name!r} knows it, but {reason}"
        for item in learnwares.values()
        if cls in item.classes and whose in (None, item.name) and (reason := why_not(item, rules)) is not None
    ]
    return f"no donor that is allowed knows {cls!r}: {'; '.join(why)}" if why else None


def _offers(
    cls: str, whose: str | None, learnwares: Mapping[str, Learnware], first: str | None = None
) -> list[ClassOffer] | str:
    known = list(learnwares.values())
    if whose is not None:
        known = [learnware for learnware in known if learnware.name == whose]
        if not known:
            return f"no learnware {whose!r}{suggest(whose, [k.name for k in learnwares.values()])}"
    found = [learnware for learnware in known if cls in learnware.classes]
    elsewhere = [learnware.name for learnware in learnwares.values() if cls in learnware.classes]
    if not found and elsewhere:
        verb = "does" if len(elsewhere) == 1 else "do"
        return f"learnware {whose!r} does not know {cls!r}; {', '.join(map(repr, elsewhere))} {verb}"
    if not found:
        classes = sorted({name for learnware in known for name in learnware.classes})
        if whose is not None:
            return f"learnware {whose!r} does not know {cls!r}{suggest(cls, classes)}"
        return f"no model in the market knows {cls!r}{suggest(cls, classes)}"
    offers = [
        ClassOffer(
            cls=cls,
            learnware=learnware.id,
            label=learnware.classes.index(cls),
            skill=(learnware.skill or {}).get(cls),
        )
        for learnware in found
    ]
    order = {learnware.id: learnware.name for learnware in found}
    return sorted(
        offers, key=lambda offer: (offer.learnware != first, -(offer.skill or 0.0), order[offer.learnware])
    )


def _rivals(
    donors: Sequence[Learnware],
    others: Sequence[ClassOffer],
    learnwares: Mapping[str, Learnware],
    store: Store,
    intake: Intake,
) -> tuple[list[Learnware], list[str]]:
    """Donors that offer a class too and read the same as the chosen ones; of the others, why they are left out."""
    found, told = list[Learnware](), list[str]()
    for id_ in dict.fromkeys(offer.learnware for offer in others):
        rival = learnwares[id_]
        if rival in donors:
            continue
        if not joint_problems([*donors, rival]):
            joint = joint_intake([(donor, intake_of(store, donor)) for donor in (*donors, rival)])
            if joint.preprocessing == intake.preprocessing:
                found.append(rival)
                continue
        known = [offer.cls for offer in others if offer.learnware == id_]
        told.append(
            f"{rival.name} knows {', '.join(known)} too, but does not read what the chosen donors read: left out; "
            f"name it ({rival.name}:{known[0]}) to take the class from it"
        )
    return found, told


def _donor_samples(donor: Learnware, samples: Labelled, store: Store, request: Request) -> Labelled:
    if set(donor.n_samples) != set(donor.classes):
        return samples
    own = store.samples(donor.id)
    k = request.samples_per_class
    return own if k is None else own.take(k)


def _without_samples(donors: Sequence[Learnware]) -> Iterator[str]:
    """Whose fragments are not cut on samples of its own, and for want of which, in words."""
    for donor in donors:
        missing = [cls for cls in donor.classes if not donor.n_samples.get(cls)]
        if not missing or all(width.ratio == 1.0 for width in donor.widths):
            continue
        of = "" if len(missing) == len(donor.classes) else f" of {', '.join(missing)}"
        yield f"{donor.name} came without samples{of}: its fragments are cut on the order's samples alone"


def _check_engines(request: Request, problems: list[str]) -> None:
    known = ("slicepack", ENGINE, CHAINS, "baselines")
    problems += [
        f"engines: no engine {name!r}{suggest(name, known)}" for name in request.engines if name not in known
    ]
    problems += [
        f"baselines: no baseline {name!r}{suggest(name, (*NAMES, STUDENT))}"
        for name in request.baselines
        if name not in (*NAMES, STUDENT)
    ]


def _samples(
    request: Request,
    classes: Sequence[str],
    offers: list[ClassOffer],
    learnwares: Mapping[str, Learnware],
    store: Store,
    intake: Intake,
    problems: list[str],
    notes: list[str],
) -> Labelled | None:
    """The samples that everything is decided on; None where there are problems.

    Args:
        problems, notes: what is found is added to them.
    """
    found: Labelled | None
    if request.samples is not None and without_labels(request):
        if intake.kind != "image":
            problems.append(f"samples: {request.samples} holds images, the donors read {intake.kind}s")
            return None
        decided = decide(Path(request.samples), classes, offers, learnwares, store)
        notes.append(decided.note(request.samples))
        found = decided.samples
    elif request.samples is not None:
        own = read_samples(Path(request.samples))
        missing = [cls for cls in classes if cls not in own.classes]
        problems += [
            f"samples: {request.samples} has none of class {cls!r}{suggest(cls, own.classes)}; give samples of "
            "every class (samples: PATH, or --samples PATH)"
            for cls in missing
        ]
        if own.noun != intake.kind:
            problems.append(f"samples: {request.samples} holds {own.noun}s, the donors read {intake.kind}s")
        strange = [cls for cls in own.classes if cls not in classes]
        if strange:
            notes.append(
                f"samples of {', '.join(strange)} in {request.samples} are left out: the order is for "
                f"{', '.join(classes)}"
            )
        found = None if problems else own.only(classes)
    else:
        parts = list[Samples | TextSamples]()
        for offer in offers:
            donor = learnwares[offer.learnware]
            if not donor.n_samples.get(offer.cls):
                problems.append(
                    f"class {offer.cls!r} is taken from {donor.name!r}, which has no samples of it; give the "
                    "order's own samples (samples: PATH, or --samples PATH)"
                )
                continue
            parts.append(store.samples(donor.id).only([offer.cls]))
        found = joined(parts, intake).only(classes) if parts and not problems else None
    k = request.samples_per_class
    if found is not None and k is not None:
        few = [f"{cls} has {count}" for cls, count in found.counts.items() if count < k]
        if few:
            notes.append(
                f"{k} samples of each class were asked for, but {', '.join(few)}: all of them are used"
            )
        found = found.take(k)
    if found is not None:
        check_reads_samples("samples", request.samples or "those of the learnwares", found, intake)
    return found


def check_reads_samples(field: str, path: str, samples: Labelled, intake: Intake) -> None:
    """Refuse samples that the model can't read now, not after everything is built.

    Raises:
        RequestError, ShapeError: names the field of the order and the path.
    """
    try:
        intake.tensor(samples.take(1))
    except (RequestError, ShapeError) as error:
        told = "; ".join(error.problems) or error.detail
        raise type(error)(f"{field}: {path}: {told}", where=field, problems=error.problems) from None


def _heldout(
    request: Request,
    classes: Sequence[str],
    intakes: Sequence[Intake],
    deciding: Sequence[Labelled],
    store: Store,
) -> Labelled | None:
    """The held-out samples of the wanted classes; None where the order has none.

    Args:
        intakes: what the models that may be delivered read.
        deciding: samples that something is chosen or fitted on.
        store: whose indices choose and stitch chains on their probe images, where the order asks for chains.

    Raises:
        RequestError: they lack a class, can't be read by the model, or some of them decide something.
    """
    path = request.heldout
    if path is None:
        return None
    read = read_samples(Path(path))
    missing = [cls for cls in classes if cls not in read.classes]
    if missing:
        raise RequestError(
            f"heldout: {path} has none of {', '.join(missing)}: give samples of every class (heldout: PATH, or "
            "--heldout PATH), or none (of a pack that is edited, --no-heldout)",
            where="heldout",
        )
    for intake in {intake.preprocessing.to_json(): intake for intake in intakes}.values():
        check_reads_samples("heldout", path, read, intake)
    found = read.only(classes)
    contents = found.contents()
    decides = {content for samples in deciding for content in samples.contents()}
    known = sum(content in decides for content in contents)
    problems = []
    if known:
        problems.append(
            f"heldout: {path}: {known} of {len(found)} held-out {found.noun}s equal {found.noun}s that the order is "
            "decided on (its samples, or those that its donors are sliced with): give others, which choose nothing"
        )
    chains = CHAINS in request.engines and intakes[0].kind == "image"
    for name in indices(store).names() if chains else ():
        probes = set(indices(store).get(name).probes().contents())
        known = sum(content in probes for content in contents)
        if known:
            problems.append(
                f"heldout: {path}: {known} of {len(found)} held-out {found.noun}s are probe images of index {name!r}, "
                "on which chains are chosen and stitched: give others, index the zoo with others under another name "
                f"and remove {name!r}, or leave the engine {CHAINS!r} out"
            )
    if problems:
        raise RequestError(problems[0], problems=problems, where="heldout")
    return found


def joined(parts: Sequence[Samples | TextSamples], intake: Intake) -> Labelled:
    """Samples of several donors as one; images of different sizes or channels become what the model of all reads.

    Raises:
        RequestError: they are of different kinds.
    """
    texts = [part for part in parts if isinstance(part, TextSamples)]
    images = [part for part in parts if isinstance(part, Samples)]
    if texts and not images:
        return texts[0].concat(*texts[1:])
    if len({part.images.shape[1:] for part in images}) > 1:
        images = [part for part in (conform(part, intake) for part in images) if isinstance(part, Samples)]
    return images[0].concat(*images[1:])
