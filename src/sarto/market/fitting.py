"""Whether a model, its preprocessing and its samples belong together; everything that does not, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from sarto.errors import suggest
from sarto.graph.model import ModelGraph, Ref, TensorRef, shapes_of
from sarto.market.labelled import Labelled
from sarto.market.samples import Samples
from sarto.market.texts import TextSamples
from sarto.market.vocabulary import Vocabulary
from sarto.types import Preprocessing, TextPreprocessing

#: Operators behind which token ids are still token ids.
_SAME_IDS = frozenset(
    [
        "aten.to.dtype",
        "aten._to_copy.default",
        "aten.clone.default",
        "aten.reshape.default",
        "aten.permute.default",
    ]
)


def image_problems(graph: ModelGraph, preprocessing: Preprocessing) -> list[str]:
    """Why a model can't read images that are preprocessed like this."""
    entry = graph.inputs[0]
    if len(graph.inputs) != 1 or len(entry.shape) != 4:
        found = [entry.shape for entry in graph.inputs]
        return [f"the model must read one batch of images (n, channels, height, width), it reads {found}"]
    problems = []
    channels, *size = entry.shape[1:]
    if preprocessing.channels != channels:
        problems.append(f"preprocessing has {preprocessing.channels} channels, the model reads {channels}")
    if preprocessing.size is not None and list(preprocessing.size) != size:
        problems.append(f"preprocessing has size {list(preprocessing.size)}, the model reads {size}")
    return problems


def reading_text_problems(
    graph: ModelGraph, preprocessing: TextPreprocessing, vocabulary: Vocabulary | None
) -> list[str]:
    """Why a model can't read texts that are preprocessed like this."""
    entry = graph.inputs[0]
    if len(graph.inputs) != 1 or len(entry.shape) != 2 or entry.dtype not in ("int64", "int32"):
        found = " and ".join(f"{e.name} ({e.dtype}, {list(e.shape[1:])})" for e in graph.inputs)
        return [f"the model must read one batch of token ids (n, length), int64; it reads {found}"]
    problems = []
    if entry.dtype != "int64":
        problems.append(f"the model reads token ids of type {entry.dtype}: capture it with int64")
    if entry.shape[1] != preprocessing.length:
        problems.append(
            f"preprocessing has length {preprocessing.length}, the model reads {entry.shape[1]} tokens"
        )
    if vocabulary is None:
        problems.append("the vocabulary is missing: give the tokens in the order of their ids")
    elif vocabulary.digest != preprocessing.vocabulary:
        problems.append("the vocabulary is another one than that of the preprocessing")
    elif (vocabulary.rule, vocabulary.size) != (preprocessing.rule, preprocessing.n_tokens):
        problems.append(
            f"preprocessing says {preprocessing.n_tokens} tokens by the rule {preprocessing.rule!r}, the vocabulary "
            f"has {vocabulary.size} by the rule {vocabulary.rule!r}"
        )
    for name, rows in embedding_rows(graph).items():
        spare = preprocessing.rule == "tokenizers" and rows > preprocessing.n_tokens
        if rows != preprocessing.n_tokens and not spare:
            problems.append(
                f"the vocabulary has {preprocessing.n_tokens} tokens, the embedding {name!r} has {rows} rows: give one "
                "token for each row, in the order of the rows"
            )
    return problems


def embedding_rows(graph: ModelGraph) -> dict[str, int]:
    """Embedding table -> number of its rows, of those that the model's first input is looked up in."""
    ids, found, shapes = {graph.inputs[0].name}, dict[str, int](), shapes_of(graph.tensors)
    for node in graph.nodes:
        given = node.args.get("self", node.args.get("input"))
        if node.op in _SAME_IDS and isinstance(given, Ref) and given.name in ids:
            ids.add(node.name)
        if node.op == "aten.embedding.default":
            read, table = node.args["indices"], node.args["weight"]
            if isinstance(read, Ref) and read.name in ids and isinstance(table, TensorRef):
                found[table.name] = shapes[table.name][0][0]
    return found


def sample_problems(
    samples: Labelled, classes: Sequence[str], preprocessing: Preprocessing | TextPreprocessing
) -> list[str]:
    """Why a model with this preprocessing and these classes can't be stocked with these samples."""
    problems = [
        f"samples of class {found!r}, which the model does not know{suggest(found, classes)}"
        for found in samples.classes
        if found not in classes
    ]
    if isinstance(samples, TextSamples) != isinstance(preprocessing, TextPreprocessing):
        problems.append(f"samples are {samples.noun}s, preprocessing is that of {preprocessing.TAG}s")
    elif isinstance(samples, Samples) and isinstance(preprocessing, Preprocessing):
        height, width, channels = samples.images.shape[1:]
        if channels != preprocessing.channels:
            problems.append(f"samples have {channels} channels, preprocessing has {preprocessing.channels}")
        if preprocessing.resize == "refuse" and preprocessing.size not in (None, (height, width)):
            problems.append(
                f"samples are {[height, width]} (height, width), preprocessing has "
                f"{list(preprocessing.size or ())}: resize them, or allow it with resize='bilinear'"
            )
    return problems
