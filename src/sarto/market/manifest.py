"""What makes a learnware the same learnware, and what one must have to be stocked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from sarto.errors import suggest
from sarto.graph.model import ModelGraph
from sarto.market.fitting import image_problems, reading_text_problems, sample_problems
from sarto.market.labelled import Labelled, repeated
from sarto.market.vocabulary import Vocabulary
from sarto.types import Learnware, Preprocessing, TextPreprocessing
from sarto.types.text import to_json_text

#: What the id of a learnware is computed from. Everything else in a manifest either follows from these (input
#: shape, number of samples, costs), is measured (skill), or only describes (name, notes, origin, created).
IDENTITY = ("classes", "graph_hash", "licence", "preprocessing", "samples_hash", "weights_hash")

_NAME = re.compile(r"\w[\w.-]{0,99}")


def content_id(
    *,
    graph_hash: str,
    weights_hash: str,
    samples_hash: str | None,
    classes: Sequence[str],
    preprocessing: Preprocessing | TextPreprocessing,
    licence: str,
) -> str:
    """The id "sha256:<64 hex>" of a learnware with this content; see `IDENTITY`."""
    content = {
        "classes": list(classes),
        "format": "sarto.learnware/1",
        "graph_hash": graph_hash,
        "licence": licence,
        "preprocessing": preprocessing.model_dump(mode="json"),
        "samples_hash": samples_hash,
        "weights_hash": weights_hash,
    }
    return "sha256:" + hashlib.sha256(to_json_text(content).encode()).hexdigest()


def id_of(learnware: Learnware) -> str:
    """The id that the content of a manifest has; equal to its `id` unless somebody changed it."""
    return content_id(
        graph_hash=learnware.graph_hash,
        weights_hash=learnware.weights_hash,
        samples_hash=learnware.samples_hash,
        classes=learnware.classes,
        preprocessing=learnware.preprocessing,
        licence=learnware.licence,
    )


def hashes_of(learnware: Learnware) -> dict[str, str]:
    """Part -> blob key of everything that a learnware keeps."""
    parts = {"graph": learnware.graph_hash, "weights": learnware.weights_hash}
    if learnware.samples_hash is not None:
        parts["samples"] = learnware.samples_hash
    if isinstance(learnware.preprocessing, TextPreprocessing):
        parts["vocabulary"] = learnware.preprocessing.vocabulary
    return parts


def stocking_problems(
    graph: ModelGraph,
    *,
    name: str,
    classes: Sequence[str],
    preprocessing: Preprocessing | TextPreprocessing,
    samples: Labelled | None,
    skill: Mapping[str, float] | None,
    vocabulary: Vocabulary | None = None,
) -> list[str]:
    """Everything that keeps a learnware from being stocked, in plain words."""
    problems: list[str] = []
    if not _NAME.fullmatch(name):
        problems.append(
            f"name {name!r}: must be 1 to 100 letters, digits, '.', '_' or '-', and not begin with '.' or '-'"
        )
    problems += _class_problems(graph, classes)
    if isinstance(preprocessing, TextPreprocessing):
        problems += reading_text_problems(graph, preprocessing, vocabulary)
    else:
        problems += image_problems(graph, preprocessing)
    if samples is not None:
        problems += sample_problems(samples, classes, preprocessing)
    problems += [
        f"skill of class {found!r}, which the model does not know{suggest(found, classes)}"
        for found in skill or {}
        if found not in classes
    ]
    return problems


def _class_problems(graph: ModelGraph, classes: Sequence[str]) -> list[str]:
    problems = [f"class {name!r} is named {classes.count(name)} times" for name in repeated(classes)]
    problems += [
        f"class {name!r}: may not hold ':', which stands between learnware and class in an order"
        for name in classes
        if ":" in name
    ]
    if not classes:
        problems.append("no classes: name what the model knows, in the order of its outputs")
    node = graph.index.get(graph.outputs[0])
    if len(graph.outputs) != 1 or node is None or len(node.shape) != 2:
        problems.append(
            f"the model must have one output of scores (n, classes), it has {list(graph.outputs)}"
        )
    elif classes and node.shape[1] != len(classes):
        problems.append(f"{len(classes)} classes are named, the model has {node.shape[1]} outputs")
    return problems
