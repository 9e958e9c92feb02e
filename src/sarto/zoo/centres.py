"""A small detector by centres: a residual trunk, coarse maps brought up to stride 8, five maps out."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sarto.zoo._checks import refuse, too_small
from sarto.zoo.resnet import PlainBlock


class CentreDetector(nn.Module):
    """For each cell of 8 x 8 pixels the logit of an object's centre, and its box's reach to all four sides.

    Reference:
        Zhou et al., Objects as Points, arXiv 1904.07850.
        Differs: a residual trunk of any size; one finer map beside the coarse one, no deconvolutions.
    """

    def __init__(self, in_channels: int, depths: Sequence[int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 5, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, given = [], width
        for place, depth in enumerate(depths):
            made = width << place
            blocks = [
                PlainBlock(given if turn == 0 else made, made, 2 if turn == 0 else 1) for turn in range(depth)
            ]
            stages.append(nn.Sequential(*blocks))
            given = made
        self.stages = nn.ModuleList(stages)
        fine = width << 1
        self.side = nn.Conv2d(given, fine, 1, bias=False)
        self.join = nn.BatchNorm2d(fine)
        self.head = nn.Conv2d(fine, fine, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(fine)
        self.out = nn.Conv2d(fine, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> (batch, 5, h / 8, w / 8)."""
        x = F.relu(self.bn1(self.conv1(x)))
        fine = self.stages[1](self.stages[0](x))
        coarse = fine
        for stage in self.stages[2:]:
            coarse = stage(coarse)
        wide = F.interpolate(self.join(self.side(coarse)), scale_factor=float(2 ** (len(self.stages) - 2)))
        return self.out(F.relu(self.norm(self.head(F.relu(fine + wide)))))


def centre_detector(
    in_channels: int = 3, depths: Sequence[int] = (1, 1, 1), width: int = 16
) -> CentreDetector:
    """A detector of one kind of object, whatever the task says that is.

    Args:
        depths: residual blocks of each stage; the first two end at a stride of 8, the others are coarser. The sides of
            images are multiples of 4 times 2 to the number of stages.
        width: channels of the first stage; each has twice those of the one before.

    Raises:
        ValueError: a number is not positive, or there are fewer than two stages.
    """
    sizes: dict[str, int | Sequence[int]] = {"in_channels": in_channels, "depths": depths, "width": width}
    problems = too_small(sizes)
    if len(depths) < 2:
        problems.append(f"depths: two stages or more are needed, got {len(depths)}")
    refuse(problems)
    return CentreDetector(in_channels, depths, width)
