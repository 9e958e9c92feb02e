"""What a packed model reads where its donors read images of different sizes or tokens of other vocabularies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sarto.errors import RequestError
from sarto.market import Intake, Labelled, Samples, Store, joint_vocabulary, to_tensor, with_channels
from sarto.types import (
    Learnware,
    Plan,
    Preprocessing,
    SourceNode,
    StockedSupernet,
    SubnetNode,
    TextPreprocessing,
    reads,
)

#: What parts of a model come from.
Giver = Learnware | StockedSupernet
#: Ids of the padding and of the unknown token in a vocabulary that sarto makes.
PAD_ID, UNKNOWN_ID = 0, 1


def intake_of(store: Store, learnware: Giver) -> Intake:
    """What the graph of a learnware reads once its normalisation stands in it: images in [0, 1], or token ids.

    Raises:
        StoreError: the vocabulary is missing or damaged.
    """
    said = learnware.preprocessing
    if isinstance(said, Preprocessing):
        return Intake(_plain(said.size, said.channels, said.resize))
    return Intake(said, store.vocabulary(learnware.id))


def joint_problems(donors: Sequence[Giver]) -> list[str]:
    """Why one model can't read for all of these donors; empty where it can."""
    kinds = {donor.preprocessing.TAG for donor in donors}
    if len(kinds) > 1:
        told = ", ".join(f"{donor.name} reads {donor.preprocessing.TAG}s" for donor in _once(donors))
        return [
            f"the donors read different kinds of samples ({told}); one model reads one kind: order classes of donors "
            "of one kind, or name another donor with learnware:class"
        ]
    return _image_problems(donors) if kinds == {"image"} else _text_problems(donors)


def joint_intake(donors: Sequence[tuple[Giver, Intake]]) -> Intake:
    """What a model of several donors reads.

    Images: the size of the donor with the most pixels, three channels where one donor has three. Texts: the longest
    length; where vocabularies differ, one with the tokens of all.

    Raises:
        RequestError: they can't be read for together.
    """
    problems = joint_problems([donor for donor, _ in donors])
    if problems:
        raise RequestError(problems[0], problems=problems)
    intakes = [intake for _, intake in donors]
    said = [intake.preprocessing for intake in intakes]
    images = [p for p in said if isinstance(p, Preprocessing)]
    texts = [p for p in said if isinstance(p, TextPreprocessing)]
    if images:
        shapes = [donor.input_shape for donor, _ in donors]
        resize = "bilinear" if all(p.resize == "bilinear" for p in images) else "refuse"
        if len(set(shapes)) == 1:
            size = next((p.size for p in images if p.size is not None), None)
            return Intake(_plain(size, images[0].channels, resize))
        largest = max(shapes, key=lambda shape: shape[1] * shape[2])
        return Intake(_plain((largest[1], largest[2]), max(p.channels for p in images), resize))
    length = max(p.length for p in texts)
    first = texts[0].replace(length=length)
    if all(p.replace(length=length) == first for p in texts):
        return Intake(first, intakes[0].vocabulary)
    vocabulary = joint_vocabulary(intake.vocabulary for intake in intakes if intake.vocabulary is not None)
    joint = first.replace(
        vocabulary=vocabulary.digest, n_tokens=vocabulary.size, pad_id=PAD_ID, unknown_id=UNKNOWN_ID
    )
    return Intake(joint, vocabulary)


def sources(plan: Plan, name: str) -> Iterator[str]:
    """Ids of the learnwares and supernets below a node."""
    node = plan.nodes[name]
    if isinstance(node, SourceNode | SubnetNode):
        yield node.of
    else:
        for below in reads(node):
            yield from sources(plan, below)


def conform(samples: Labelled, joint: Intake) -> Labelled:
    """Images of the joint size and channels, whole numbers again; texts as they are.

    Raises:
        ShapeError: images that may not be resized, or of other channels.
    """
    wanted = joint.preprocessing
    if not isinstance(samples, Samples) or not isinstance(wanted, Preprocessing) or wanted.size is None:
        return samples
    if samples.images.shape[1:] == (*wanted.size, wanted.channels):
        return samples
    pixels = to_tensor(with_channels(samples.images, wanted.channels), wanted).permute(0, 2, 3, 1)
    return Samples((pixels * 255).round().numpy().astype(np.uint8), samples.labels, samples.classes)


def _image_problems(donors: Sequence[Giver]) -> list[str]:
    problems = []
    shapes = {donor.name: donor.input_shape for donor in donors}
    told = ", ".join(f"{name} reads {shape[1]}x{shape[2]}" for name, shape in shapes.items())
    channels = {donor.input_shape[0] for donor in donors}
    if len(channels) > 1 and channels != {1, 3}:
        told_channels = ", ".join(f"{name} reads {shape[0]}" for name, shape in shapes.items())
        problems.append(
            f"the donors read different channels ({told_channels}); only grey and colour images can be read for "
            "together: order classes of donors of the same channels"
        )
    if len({shape[1:] for shape in shapes.values()}) > 1:
        fixed = [d for d in _once(donors) if isinstance(d.preprocessing, Preprocessing)]
        refusing = [d.name for d in fixed if getattr(d.preprocessing, "resize", "") != "bilinear"]
        if refusing:
            problems.append(
                f"the donors read images of different sizes ({told}), and {', '.join(refusing)} may not be given "
                "resized images (resize='refuse'): add them again with --resize bilinear, or order classes of donors "
                "of one size, naming another donor with learnware:class"
            )
    return problems


def _text_problems(donors: Sequence[Giver]) -> list[str]:
    said = [
        (d.name, d.preprocessing) for d in _once(donors) if isinstance(d.preprocessing, TextPreprocessing)
    ]
    rules = {(p.rule, p.lower, p.side) for _, p in said}
    libraries = {p for _, p in said if p.rule == "tokenizers"}
    cure = "order classes of donors that part texts alike, or name another donor with learnware:class"
    if len(rules) > 1:
        told = ", ".join(
            f"{name} by {p.rule}{', small letters' if p.lower and p.rule == 'words' else ''}, padded at the {p.side}"
            for name, p in said
        )
        return [f"the donors part texts in different ways ({told}); {cure}"]
    if len(libraries) > 1:
        told = ", ".join(name for name, _ in said)
        return [f"the donors have tokenisers of their own or other lengths ({told}); {cure}"]
    return []


def _once(donors: Sequence[Giver]) -> list[Giver]:
    return list({donor.id: donor for donor in donors}.values())


def _plain(size: tuple[int, int] | None, channels: int, resize: str) -> Preprocessing:
    return Preprocessing.parse(
        {
            "size": size,
            "channels": channels,
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
            "resize": resize,
        }
    )
