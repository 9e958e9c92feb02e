"""Which models an order's parts may come from: must be used, must not be, licences, and how many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from sarto.errors import StoreError, suggest
from sarto.market import Store
from sarto.types import DonorRules, Learnware, Plan, StockedSupernet

Source = Learnware | StockedSupernet
AnySource = TypeVar("AnySource", bound=Source)


def check_rules(sources: Sequence[Source], rules: DonorRules, problems: list[str]) -> None:
    """Rules that name what the market has not, or that contradict what it has, go to the problems.

    Args:
        sources: all learnwares and supernets of the market.
    """
    for field in ("must", "avoid"):
        for place, name in enumerate(getattr(rules, field)):
            if not meant(sources, (name,)):
                hint = suggest(name, [item.name for item in sources])
                problems.append(f"donors.{field}[{place}]: no learnware or supernet {name!r}{hint}")
    for item in meant(sources, rules.must):
        why = why_not(item, rules)
        if why is not None:
            problems.append(f"donors.must: {item.name!r} must be used, but {why}")


def allowed(sources: Iterable[AnySource], rules: DonorRules) -> dict[str, AnySource]:
    """Those that an order may use, by id."""
    return {item.id: item for item in sources if why_not(item, rules) is None}


def meant(sources: Iterable[AnySource], names: Sequence[str]) -> list[AnySource]:
    """Those that one of these names or ids means."""
    return [item for item in sources if item.name in names or item.id in names]


def why_not(item: Source, rules: DonorRules) -> str | None:
    """Why a learnware or a supernet may not be used; None where it may."""
    if meant((item,), rules.avoid):
        return "it is to be avoided"
    if rules.allows(item.licence):
        return None
    return f"its licence {item.licence!r} is not allowed" if item.licence else "it states no licence"


def check_donors(plan: Plan, store: Store) -> None:
    """Refuse a given plan of which the market has not every donor any more.

    Raises:
        StoreError: names each one that is missing, and when it was removed.
    """
    problems = list[str]()
    for get, ids in ((store.get, plan.learnwares), (store.supernets.get, plan.supernets)):
        for id_ in ids:
            try:
                get(id_)
            except StoreError as error:
                problems.append(error.detail)
    if problems:
        raise StoreError("the given plan can't be built", problems=problems, where=str(store.path))


def broken_rules(plan: Plan, rules: DonorRules, sources: Mapping[str, Source]) -> tuple[str, ...]:
    """What a plan breaks of the rules, in words.

    Args:
        sources: the learnwares and supernets that the order may use, by id.
    """
    used = {*plan.learnwares, *plan.supernets}
    found = [f"with {item.name}" for item in meant(sources.values(), rules.must) if item.id not in used]
    found += [f"without {id_[7:19]}" for id_ in sorted(used - set(sources))]
    if len(used) < rules.least:
        found.append(f"at least {rules.least} donors")
    if rules.most is not None and len(used) > rules.most:
        found.append(f"at most {rules.most} donor{'' if rules.most == 1 else 's'}")
    return tuple(found)
