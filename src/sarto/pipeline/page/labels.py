"""Where the labels of points go so that they don't lie on each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "center", "right"]


@dataclass(frozen=True)
class Box:
    """A rectangle, in points of the figure."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def outside(self, frame: Box) -> float:
        """Area that lies outside a frame."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(frame)


@dataclass(frozen=True)
class Placed:
    """A label's box, and how far it lies from its point."""

    box: Box
    side: Side
    distance: float


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    frame: Box,
) -> list[Placed]:
    """A box for each label, in the order given: the earlier ones get the better places.

    Args:
        points: what the labels name, in points of the figure.
        sizes: (width, height) of each label.
        obstacles: what labels should not cover (markers, bars, other text).
        frame: what labels must stay in.
    """
    taken: list[Box] = []
    found = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        best = min(
            _places(x, y, width, height),
            key=lambda spot: (
                100 * spot.box.outside(frame)
                + 100 * sum(spot.box.overlap(box) for box in taken)
                + 4 * sum(spot.box.overlap(box) for box in obstacles)
                + spot.distance
            ),
        )
        taken.append(best.box)
        found.append(best)
    return found


def _places(x: float, y: float, width: float, height: float) -> list[Placed]:
    spots = []
    for reach in (9.0, 18.0, 30.0, 44.0, 60.0, 80.0, 104.0, 130.0):
        for across, up in ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1)):
            left = x + (reach if across == 1 else -reach - width if across == -1 else -width / 2)
            if across and up and reach > 9.0:
                left = x + (9.0 if across == 1 else -9.0 - width)
            bottom = y + up * reach - height / 2
            side: Side = "left" if across == 1 else "right" if across == -1 else "center"
            spots.append(Placed(Box(left, bottom, left + width, bottom + height), side, reach + (up != 0)))
    return spots
