"""Other spellings of torch's operators: each computes what the module computes, with its groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.errors import GraphError
from sarto.graph import capture, relative_difference
from sarto.graph.operators import ALLOWED
from sarto.graph.spellings import COMPOSED, FIRST_ONLY, SPELLED, WRITTEN
from sarto.testing.surgery_contract import check_slicing
from sarto.testing.tolerances import EXACT

IMAGE = torch.randn(2, 3, 4, 4, dtype=torch.float64)


class Spelled(nn.Module):
    """A convolution to eight channels, a function of the map, and a linear layer that reads all of it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.function = nn.Conv2d(3, 8, 3, padding=1), function
        self.head = nn.Linear(function(torch.zeros(2, 8, 4, 4)).flatten(1).shape[1], 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.stem(x)).flatten(1))


Case = tuple[Callable[[Tensor], Tensor], list[int]]
#: Name -> the function of a map, and sizes of the groups that it leaves.
SLICEABLE: dict[str, Case] = {
    "narrow": (lambda v: v.narrow(1, 2, 4), [4]),
    "movedim": (lambda v: v.movedim(1, -1), [8]),
    "movedim list": (lambda v: v.movedim((1, 2), (3, 1)), [8]),
    "moveaxis": (lambda v: v.moveaxis(1, -1), [8]),
    "swapdims": (lambda v: v.swapdims(1, 2), [8]),
    "swapaxes": (lambda v: v.swapaxes(axis0=1, axis1=3), [8]),
    "adjoint": (lambda v: v.adjoint(), [8]),
    "mH": (lambda v: v.flatten(2).mH, [8]),
    "tile": (lambda v: v.tile(1, 2, 1, 1), [8]),
    "short tile": (lambda v: v.tile(2), [8]),
    "broadcast_to": (lambda v: v[:, :, :1].broadcast_to(v.shape).relu(), [8]),
    "broadcast_tensors": (lambda v: torch.broadcast_tensors(v, v[:, :, :1])[1], [8]),
    "tensor_split": (lambda v: sum(v.tensor_split(2, 1), v[:, :4]), [4]),
    "tensor_split at": (lambda v: torch.cat(v.tensor_split((3, 5), 1)[::2], 1), [3, 3]),
    "hsplit": (lambda v: torch.mul(*v.hsplit(2)), [4]),
    "dsplit": (lambda v: torch.mul(*v.dsplit(2)), [8]),
    "hstack": (lambda v: torch.hstack([v, v.tanh()]), [8]),
    "dstack": (lambda v: torch.dstack([v, v.tanh()]), [8]),
    "column_stack": (lambda v: torch.column_stack([v, v.tanh()]), [8]),
    "concatenate": (lambda v: torch.concatenate([v, v.tanh()], dim=1), [8]),
    "slice_scatter": (lambda v: v.slice_scatter(v[:, 4:6].tanh(), 1, 0, 2), [2, 2, 2]),
    "select_scatter": (lambda v: v.select_scatter(v[:, :, 0].tanh(), 2, 3), [8]),
    "channel_shuffle": (lambda v: F.channel_shuffle(v, 2), [2, 4]),
    "rot90": (lambda v: v.rot90(3, (2, 3)), [8]),
    "half turn": (lambda v: v.rot90(2, (2, 3)), [8]),
    "max_pool2d": (lambda v: F.max_pool2d(v, 2, return_indices=True)[0], [8]),
    "max_pool1d": (lambda v: F.max_pool1d(v.flatten(2), 2, return_indices=True)[0], [8]),
    "max_pool3d": (lambda v: F.max_pool3d(v.unsqueeze(2), (1, 2, 2), return_indices=True)[0], [8]),
    "clip": (lambda v: v.clip(-1, 1), [8]),
    "clip in place": (lambda v: v.tanh().clip_(-0.5, 0.5), [8]),
    "divide": (lambda v: torch.divide(torch.subtract(+v, 2), torch.multiply(v, v).exp()), [8]),
    "true_divide": (lambda v: v.negative().true_divide(v.absolute() + 1), [8]),
    "greater": (lambda v: torch.where(torch.greater(v, 0), v, v.less_equal(-1) * 0.5 * v), [8]),
    "log10": (lambda v: (v.square() + 1).log10(), [8]),
    "angles": (lambda v: v.rad2deg().deg2rad(), [8]),
    "hypot": (lambda v: torch.hypot(v, v.tanh()), [8]),
    "logit": (lambda v: v.sigmoid().logit(1e-3), [8]),
    "logaddexp": (lambda v: torch.logaddexp(v, v.tanh()), [8]),
    "xlogy": (lambda v: torch.xlogy(v.relu(), v.exp()), [8]),
    "var_mean": (lambda v: torch.cat(torch.var_mean(v, (2, 3)), 1), [8]),
    "std_mean": (lambda v: torch.cat(torch.std_mean(v, dim=2, correction=0, keepdim=True), 1), [8]),
    "aminmax": (lambda v: torch.cat(torch.aminmax(v, dim=2), 1), [8]),
    "vecdot": (lambda v: torch.linalg.vecdot(v, v.tanh(), dim=1), [8]),
    "cosine over space": (lambda v: F.cosine_similarity(v.flatten(2), v.flatten(2).relu(), dim=2), [8]),
    "pairwise_distance": (lambda v: F.pairwise_distance(v, v.tanh()), [8]),
    "matrix_norm": (lambda v: torch.linalg.matrix_norm(v), [8]),
}
#: What looks at the channels as a whole.
PINNING: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine_similarity": lambda v: F.cosine_similarity(v, v.tanh() + 1, dim=1),
    "broadcast cosine": lambda v: F.cosine_similarity(v, v[:, :, :1].exp(), dim=1),
    "linalg_norm": lambda v: torch.linalg.norm(v, dim=1),
    "fliplr": lambda v: v.fliplr(),
    "special_softmax": lambda v: torch.special.softmax(v, 1),
    "whole numbers": lambda v: (v.argmax(1) * 1.5 + v.argmin(1) / 7) * v.mean(1),
}


@pytest.mark.parametrize("name", SLICEABLE)
def test_a_spelling_keeps_the_groups_of_what_it_stands_for(name: str) -> None:
    function, sizes = SLICEABLE[name]
    model = Spelled(function).double()
    graph = check_slicing(model, IMAGE, {"filters": len(sizes)} if sizes else {})
    assert sorted(group.size for group in graph.analysis.sliceable) == sizes
    with torch.no_grad():
        assert relative_difference((graph(IMAGE),), (model(IMAGE),)) <= EXACT[torch.float64]
    assert all(node.op in ALLOWED for node in graph.nodes)


@pytest.mark.parametrize("name", PINNING)
def test_a_spelling_that_looks_at_the_channels_as_a_whole_is_captured(name: str) -> None:
    model = Spelled(PINNING[name]).double()
    graph = check_slicing(model, IMAGE, {})
    three = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference((graph(three),), (model(three),)) <= EXACT[torch.float64]


class Products(nn.Module):
    """Linear layers in other words."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem, self.form = nn.Linear(5, 6), form
        self.weight, self.head = nn.Parameter(torch.randn(6, 7)), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if self.form == "tensordot":
            x = torch.tensordot(x, self.weight, dims=([1], [0]))
        elif self.form == "inner":
            x = torch.inner(x, self.weight.T)
        else:
            x = torch.mv(x, self.weight[:, 0]).unsqueeze(1).expand(-1, 7)
        return self.head(x.relu())


@pytest.mark.parametrize("form", ["tensordot", "inner", "mv"])
def test_products_in_other_words_are_linear_readers(form: str) -> None:
    graph = check_slicing(
        Products(form).double(), torch.randn(2, 5).double(), {"hidden units": 1 + (form != "mv")}
    )
    assert next(group.size for group in graph.analysis.sliceable) == 6


class Counted(nn.Module):
    """Reads where each position's largest channel is, as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self.stem(x).argmax(1, keepdim=True) * 1.0).relu())


def test_whole_numbers_that_become_fractions_follow_the_precision() -> None:
    """An int times a float is of torch's default type: the double twin once met a float there."""
    model, x = Counted(), IMAGE.float()
    graph = check_slicing(model, x, {"filters": 1})
    for dtype in (torch.float64, torch.bfloat16):
        assert graph.to(dtype)(x.to(dtype)).dtype == dtype


def test_indices_of_a_pool_that_are_read_are_refused_by_name() -> None:
    pool = Spelled(lambda v: torch.cat(F.max_pool2d(v, 2, return_indices=True), 1))
    with pytest.raises(GraphError, match=r"may not hold: aten\.max_pool2d_with_indices\.default"):
        capture(pool, IMAGE.float())


def test_an_uneven_scatter_is_refused_by_its_own_name() -> None:
    model = Spelled(lambda v: v.slice_scatter(v[:, ::2], 1, 0, 8, 2))
    with pytest.raises(GraphError, match=r"may not hold: aten\.slice_scatter\.default"):
        capture(model, IMAGE.float())


def test_every_spelling_is_an_operator_of_torch_and_none_is_of_the_normal_form() -> None:
    def found(op: str) -> object:
        _, packet, variant = op.split(".")
        return getattr(getattr(torch.ops.aten, packet, None), variant, None)

    assert all(isinstance(found(op), torch._ops.OpOverload) for op in SPELLED)
    assert not SPELLED & ALLOWED
    assert not COMPOSED & WRITTEN.keys() and not FIRST_ONLY.keys() & (COMPOSED | WRITTEN.keys())
    assert all(found(op)._can_decompose() for op in COMPOSED)
