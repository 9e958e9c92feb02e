"""Reading a whole market to find out whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping

from sarto.errors import GraphError, StoreError
from sarto.graph.file import read_graph_files
from sarto.market.blobs import Blobs
from sarto.market.index import Catalogue
from sarto.market.manifest import hashes_of, id_of
from sarto.market.profiles import problems as profile_problems
from sarto.market.rows import live, manifest, stocked, used
from sarto.market.supernets import problems as supernet_problems


def verify(index: Catalogue, blobs: Blobs) -> list[str]:
    """Everything that is wrong; lines that begin with "info:" are harmless."""
    damage = index.damage()
    if damage:
        return damage
    with index.read() as session:
        learnwares, fragments = live(session), stocked(session)
    problems: list[tuple[str, str]] = []
    for row in learnwares:
        what = f"learnware {row.name!r}"
        try:
            found = manifest(row)
        except StoreError as error:
            problems.append((row.id, str(error)))
            continue
        if not row.id == found.id == id_of(found):
            problems.append((row.id, f"{what}: id {row.id} does not belong to its content ({id_of(found)})"))
        if row.name != found.name:
            problems.append((row.id, f"{what}: its manifest names it {found.name!r}"))
        problems += [(row.id, text) for text in _part_problems(blobs, what, hashes_of(found))]
    for item in fragments:
        parts = {"graph": item.graph_hash, "weights": item.weights_hash}
        problems += [(item.key, text) for text in _part_problems(blobs, f"fragment {item.key}", parts)]
    listed = list(blobs)
    with index.read() as session:
        of_others = [*profile_problems(session), *supernet_problems(session, blobs)]
        # What was removed while this ran is no problem, and what was added meanwhile is no orphan.
        present = {row.id for row in live(session)} | {row.key for row in stocked(session)}
        try:
            needed = used(session)
        except StoreError:
            listed, needed = [], set()
    found_now = [text for owner, text in problems if owner in present]
    return (
        found_now
        + of_others
        + [f"info: blob {key} belongs to nothing; clean() removes it" for key in listed if key not in needed]
    )


def _part_problems(blobs: Blobs, what: str, parts: Mapping[str, str]) -> list[str]:
    problems = [
        f"{what}: {part}: {text}" for part, key in parts.items() if (text := blobs.problem(key)) is not None
    ]
    if not problems:
        try:
            read_graph_files(blobs.path(parts["graph"]), blobs.path(parts["weights"]))
        except (GraphError, StoreError) as error:
            problems.append(f"{what}: its files are whole but hold no graph ({error})")
    return problems
