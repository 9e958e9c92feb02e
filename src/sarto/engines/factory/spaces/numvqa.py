"""NumVQA: four digits in an image, and questions about them: "are there exactly two sevens?"."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sarto.engines.factory.data import Split
from sarto.errors import RequestError

#: What counts, in the order of the answers.
NO, YES = 0, 1
DIGITS = 4
EVEN = (0, 2, 4, 6, 8)
#: Share of the negative samples that miss by one, or have the right number of another digit.
NEAR_MISS = 0.5
#: Farthest that a digit is moved from its place, as a share of its side.
JITTER = 1 / 14


class NumVqa:
    """Images of four digits and yes-or-no questions; half of the answers are yes.

    Args:
        images: split -> grey digits (n, side, side), uint8.
        labels: split -> the digits (n,), 0 to 9.

    Reference:
        NN-Factory, arXiv 2308.15003, section 5.1.
        Differs: 5 quantifiers and 12 predicates give the paper's 60 questions in one enumeration; answers are balanced
        and half of the negatives are near misses, since always answering "no" would be 99.99 % right on "exactly
        four 5".
    """

    mean = std = 0.5

    def __init__(self, images: dict[Split, np.ndarray], labels: dict[Split, np.ndarray]) -> None:
        self.images = images
        self.by_digit = {
            split: [np.flatnonzero(held == digit) for digit in range(10)] for split, held in labels.items()
        }
        short = [
            f"the {split} split has no digit {digit}"
            for split, held in self.by_digit.items()
            for digit in range(10)
            if not len(held[digit])
        ]
        if short:
            raise RequestError(short[0], problems=short)

    def draw(
        self, tasks: Sequence[frozenset[str]], split: Split, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images (n, 1, 2 side, 2 side) in [-1, 1] and answers (n,)."""
        seed = int(torch.randint(2**62, (), generator=generator))
        rng = np.random.default_rng(seed)
        answers = rng.integers(0, 2, len(tasks))
        digits = np.stack(
            [draw_digits(task, bool(answer), rng) for task, answer in zip(tasks, answers, strict=True)]
        )
        return self.pictures(digits, split, rng), torch.from_numpy(answers)

    def pictures(self, digits: np.ndarray, split: Split, rng: np.random.Generator) -> Tensor:
        """Images (n, 1, 2 side, 2 side) of four digits (n, 4), each from another original, moved a little."""
        held, by_digit = self.images[split], self.by_digit[split]
        chosen = np.array([[by_digit[d][rng.integers(len(by_digit[d]))] for d in row] for row in digits])
        side = held.shape[1]
        far = round(JITTER * side)
        tiles = held[chosen]
        moves = rng.integers(-far, far + 1, (*digits.shape, 2))
        out = np.zeros((len(digits), 2 * side, 2 * side), np.uint8)
        for i in range(len(digits)):
            for place in range(DIGITS):
                top, left = divmod(place, 2)
                moved = _moved(tiles[i, place], *moves[i, place])
                out[i, top * side : (top + 1) * side, left * side : (left + 1) * side] = moved
        return torch.from_numpy(out).float().div_(127.5).sub_(1.0)[:, None]


def numvqa(folder: str) -> NumVqa:
    """NumVQA over the digits in a folder: MNIST's four IDX files, gzipped or not, or one `digits.npz`.

    `digits.npz` holds train_images, train_labels, test_images and test_labels; images (n, side, side), uint8.

    Raises:
        RequestError: the files are not there or not what they are called.
    """
    home = Path(folder)
    packed = home if home.suffix == ".npz" else home / "digits.npz"
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as held:
            wanted = [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]
            missing = [f"{packed} has no array {name!r}" for name in wanted if name not in held]
            if missing:
                raise RequestError(missing[0], problems=missing, where=str(packed))
            images = {split: held[f"{split}_images"] for split in ("train", "test")}
            labels = {split: held[f"{split}_labels"] for split in ("train", "test")}
        return NumVqa(images, labels)  # type: ignore[arg-type]
    names = {"train": "train", "test": "t10k"}
    return NumVqa(
        {split: read_idx(home, f"{name}-images-idx3-ubyte") for split, name in names.items()},  # type: ignore[misc]
        {split: read_idx(home, f"{name}-labels-idx1-ubyte") for split, name in names.items()},  # type: ignore[misc]
    )


def holds(task: frozenset[str], digits: np.ndarray) -> np.ndarray:
    """Whether the answer of a question about digits (..., 4) is yes."""
    right, members = _parts(task)
    return np.isin(np.isin(digits, members).sum(-1), right)


def draw_digits(task: frozenset[str], answer: bool, rng: np.random.Generator) -> np.ndarray:
    """Four digits whose answer is as asked; half of the negatives are near misses."""
    right, members = _parts(task)
    others = [digit for digit in range(10) if digit not in members]
    if answer:
        weights = [_chance(count, len(members)) for count in right]
        count = right[int(rng.choice(len(right), p=np.array(weights) / sum(weights)))]
        return _with_count(count, members, others, rng)
    wrong = [count for count in range(DIGITS + 1) if count not in right]
    if rng.random() >= NEAR_MISS:
        weights = [_chance(count, len(members)) for count in wrong]
        count = wrong[int(rng.choice(len(wrong), p=np.array(weights) / sum(weights)))]
        return _with_count(count, members, others, rng)
    near = [count for count in wrong if count - 1 in right or count + 1 in right]
    if len(members) == 1 and 0 in wrong and rng.random() < 0.5:
        # The right number of another digit.
        digits = np.full(DIGITS, -1)
        n = right[0] if len(right) == 1 else right[int(rng.integers(len(right)))]
        digits[:n] = rng.choice(others)
        left = [digit for digit in others if digit != digits[0]]
        digits[n:] = rng.choice(left, DIGITS - n)
        return rng.permutation(digits)
    return _with_count(int(rng.choice(near)), members, others, rng)


def _parts(task: frozenset[str]) -> tuple[list[int], list[int]]:
    """Counts that make the answer yes, and the digits that count; of several quantifiers or predicates their union."""
    right: set[int] = set()
    members: set[int] = set()
    for name in task:
        kind, _, number = name.partition("_")
        if name == "has":
            right |= set(range(1, DIGITS + 1))
        elif kind == "exactly":
            right.add(int(number))
        elif kind == "digit":
            members.add(int(number))
        elif name in ("even", "odd"):
            members |= {digit for digit in range(10) if (digit in EVEN) == (name == "even")}
        else:
            raise RequestError(f"{name!r} is no property of a question about digits")
    return sorted(right) or list(range(DIGITS + 1)), sorted(members) or list(range(10))


def _chance(count: int, members: int) -> float:
    share = members / 10
    return float(comb(DIGITS, count) * share**count * (1 - share) ** (DIGITS - count))


def _with_count(count: int, members: list[int], others: list[int], rng: np.random.Generator) -> np.ndarray:
    digits = np.concatenate([rng.choice(members, count), rng.choice(others, DIGITS - count)])
    return rng.permutation(digits)


def _moved(tile: np.ndarray, down: int, right: int) -> np.ndarray:
    moved = np.zeros_like(tile)
    side = len(tile)
    moved[max(0, down) : side + min(0, down), max(0, right) : side + min(0, right)] = tile[
        max(0, -down) : side + min(0, -down), max(0, -right) : side + min(0, -right)
    ]
    return moved


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of an IDX file of unsigned bytes, gzipped or not, as MNIST has them."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if len(data) < 4 or data[:3] != b"\0\0\x08":
                raise RequestError(f"{path} is no IDX file of unsigned bytes", where=str(path))
            ndim = data[3]
            shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
            found = np.frombuffer(data, np.uint8, offset=4 + 4 * ndim)
            if found.size != int(np.prod(shape)):
                raise RequestError(f"{path} is cut off: {shape} was promised, {found.size} bytes are there")
            return found.reshape(shape)
    raise RequestError(
        f"{folder} holds neither {name} nor {name}.gz; give the folder of MNIST's four IDX files, or of a digits.npz",
        where=str(folder),
    )
