"""Which models an order's parts may come from: must be used, must not be, licences, and how many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sarto.errors import suggest
from sarto.types import DonorRules, Learnware, Plan


def allowed_donors(
    learnwares: Mapping[str, Learnware], rules: DonorRules, problems: list[str]
) -> dict[str, Learnware]:
    """The learnwares that an order may use, by id; names that nobody has and contradictions go to the problems."""
    known = list(learnwares.values())
    for field in ("must", "avoid"):
        for place, name in enumerate(getattr(rules, field)):
            if not meant(known, (name,)):
                hint = suggest(name, [item.name for item in known])
                problems.append(f"donors.{field}[{place}]: no learnware {name!r}{hint}")
    for item in meant(known, rules.must):
        why = why_not(item, rules)
        if why is not None:
            problems.append(f"donors.must: {item.name!r} must be used, but {why}")
    return {id_: item for id_, item in learnwares.items() if why_not(item, rules) is None}


def meant(learnwares: Iterable[Learnware], names: Sequence[str]) -> list[Learnware]:
    """The learnwares that one of these names or ids means."""
    return [item for item in learnwares if item.name in names or item.id in names]


def why_not(item: Learnware, rules: DonorRules) -> str | None:
    """Why a learnware may not be used; None where it may."""
    if meant((item,), rules.avoid):
        return "it is to be avoided"
    if rules.allows(item.licence):
        return None
    return f"its licence {item.licence!r} is not allowed" if item.licence else "it states no licence"


def broken_rules(plan: Plan, rules: DonorRules, learnwares: Mapping[str, Learnware]) -> tuple[str, ...]:
    """What a plan breaks of the rules, in words.

    Args:
        learnwares: those that the order may use, by id.
    """
    used = set(plan.learnwares)
    found = [f"with {item.name}" for item in meant(learnwares.values(), rules.must) if item.id not in used]
    found += [f"without {id_[7:19]}" for id_ in sorted(used - set(learnwares))]
    if len(used) < rules.least:
        found.append(f"at least {rules.least} donors")
    if rules.most is not None and len(used) > rules.most:
        found.append(f"at most {rules.most} donor{'' if rules.most == 1 else 's'}")
    return tuple(found)
