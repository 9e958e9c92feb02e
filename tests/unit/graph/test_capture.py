"""What a captured graph looks like, and what is refused."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.errors import GraphError, ShapeError
from sarto.graph import BatchDim, Selection, capture, slice, uniform_counts
from sarto.pipeline.sources.calling import capture_called
from sarto.testing.pico import PICO, pico


@pytest.mark.parametrize("name", PICO)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_capture_computes_what_the_model_computes(name: str, batch: int) -> None:
    model, x = pico(name)
    model.train()
    graph = capture(model, x[:batch])
    assert model.training, "the module is left as it was"
    model.eval()
    assert torch.equal(graph(x), model(x))


def test_the_normal_form_has_no_in_place_operators_views_splits_or_symbols() -> None:
    for name in PICO:
        graph = capture(*pico(name), prove=False)
        names = {node.op.split(".")[1] for node in graph.nodes}
        assert not any(op.endswith("_") for op in names)
        assert not names & {
            "view",
            "flatten",
            "unsqueeze",
            "squeeze",
            "chunk",
            "split",
            "sym_size",
            "contiguous",
        }
        assert all(node.shape[0] == BatchDim(1) for node in graph.nodes)


def test_training_mode_gives_the_same_loss_and_gradients_as_the_module() -> None:
    model, x = pico("residual")
    graph = capture(model, x)
    copy = graph.module(train=True)
    model.train()
    for net in (model, copy):
        net(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(copy.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize(
    "group_count", [("plain", 3), ("residual", 4), ("mobile", 3), ("dense", 4), ("grouped", 4)]
)
def test_groups_are_the_ones_that_a_reader_would_name(group_count: tuple[str, int]) -> None:
    name, count = group_count
    graph = capture(*pico(name))
    assert len(graph.analysis.sliceable) == count


def test_depthwise_and_squeeze_excite_share_one_group() -> None:
    graph = capture(*pico("mobile"))
    group = graph.analysis.group("expand")
    tensors = {tensor for tensor, _ in group.places}
    assert {
        "expand.weight",
        "bn1.weight",
        "depth.weight",
        "bn2.running_var",
        "excite.weight",
        "project.weight",
    } <= tensors
    small = slice(graph, Selection({group.id: (1, 5, 7)}))
    assert small.node("conv2d_2").args["groups"] == 3


def test_pinned_groups_name_the_operator() -> None:
    graph = capture(*pico("pinned"))
    assert [group.id for group in graph.analysis.sliceable] == ["conv1.weight:0"]
    assert any("layer_norm" in why for why in graph.analysis.group("conv2").pinned)
    assert not graph.analysis.unruled
    with pytest.raises(GraphError, match=r"can't be sliced.*layer_norm"):
        slice(graph, Selection({"conv2.weight:0": (0, 1)}))


def test_selection_problems_come_all_at_once() -> None:
    graph = capture(*pico("plain"))
    with pytest.raises(GraphError) as caught:
        slice(graph, Selection({"conv9": (0,), "conv1.weight:0": (0, 99), "fc2.weight:0": (1,)}))
    assert len(caught.value.problems) == 3
    for part in ("no channel group 'conv9'", "asked for [99]", "'fc2.weight:0' can't be sliced"):
        assert part in str(caught.value)


def test_ratio_outside_its_range() -> None:
    graph = capture(*pico("plain"))
    with pytest.raises(GraphError, match=r"\(0, 1\]"):
        uniform_counts(graph, 0.0)


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x)[1]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class FoldsBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.reshape(x.shape[0] * 2, -1)).reshape(x.shape[0], -1)


class Prints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("the model speaks", file=sys.stderr)
        return x + 1


class Picks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.nonzero(x).sum()


class TakesItem(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.new_zeros(int(x.sum().item())).sum()


class HalvesBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] // 2, -1)


class AddsSample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:1]])


UNSIZED = {
    Picks(): r"how much nonzero gives \(test_capture\.py:\d+: return x \+ torch\.nonzero\(x\)\.sum\(\)\) depends",
    TakesItem(): r"the model takes a size or a number from its data \(at test_capture\.py:\d+\)",
    HalvesBatch(): r"a size that floordiv makes \(test_capture\.py:\d+: .*\) is \(batch//2\): only constants",
    AddsSample(): r"a size that cat makes \(test_capture\.py:\d+: .*\) is batch \+ 1: only constants",
}


class BranchesOnBatch(nn.Module):
    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[0] <= self.most else x * 2


class ByName(nn.Module):
    def forward(self, *, ids: Tensor, mask: Tensor) -> Tensor:
        return ids * mask


def test_an_operator_outside_the_list_is_named() -> None:
    with pytest.raises(GraphError, match="svd"):
        capture(Sorts(), torch.randn(2, 3, 3))


def test_python_control_flow_is_refused_with_the_reason() -> None:
    with pytest.raises(
        GraphError,
        match=r"could not capture Branches with inputs of shape \(batch, 3\): the model branches on data "
        r"\(at test_capture\.py:\d+: return x \* 2 if x\.sum\(\) > 0 else x\).*torch\.where",
    ):
        capture(Branches(), torch.randn(2, 3))


def test_a_failed_capture_prints_and_logs_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(GraphError):
        capture(Branches(), torch.randn(2, 3))
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    capture(Prints(), torch.randn(2, 3))
    assert "the model speaks" in capfd.readouterr().err, "what a model prints itself is not swallowed"


@pytest.mark.parametrize(("model", "said"), UNSIZED.items(), ids=lambda case: type(case).__name__)
def test_a_size_that_a_graph_cannot_hold_is_told_with_its_operator_and_line(
    model: nn.Module, said: str
) -> None:
    with pytest.raises(GraphError, match=said):
        capture(model, torch.rand(4, 2))


@pytest.mark.parametrize(("most", "said"), [(5, "batches of 2 to 5 only"), (2, "batches from 3 on only")])
def test_a_branch_on_the_batch_size_is_refused(most: int, said: str) -> None:
    with pytest.raises(GraphError, match=rf"BranchesOnBatch branches on the size of its batch.*{said}"):
        capture(BranchesOnBatch(most), torch.rand(4, 2))


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ([torch.rand(2, 3)], r"found list\. Give tuple\(list\).*torch\.stack"),
        (torch.rand(2, 3).numpy(), r"found numpy\.ndarray\. Give torch\.from_numpy"),
        ({"x": torch.rand(2, 3)}, r"found dict\. Give the tensors to .*capture_called"),
        ((torch.rand(2, 3), None), r"found NoneType"),
        ((), r"found an empty tuple"),
    ],
    ids=["list", "array", "dict", "none", "empty"],
)
def test_an_example_that_is_no_tensor_is_refused(example: Any, said: str) -> None:
    with pytest.raises(ShapeError, match=f"must be a tensor, or a tuple with one tensor per input; {said}"):
        capture(nn.Identity(), example)


def test_a_model_that_is_called_by_keyword_is_pointed_to_the_way_in() -> None:
    with pytest.raises(
        GraphError, match=r"ByName\.forward\(\*, ids, mask\) can't be called with 2 tensors.*capture_called"
    ):
        capture(ByName(), (torch.rand(2, 3), torch.rand(2, 3)))
    graph = capture_called(ByName(), ["ids", "mask"], (torch.rand(2, 3), torch.rand(2, 3)))
    assert [entry.name for entry in graph.inputs] == ["ids", "mask"]


def test_a_batch_folded_into_another_axis_runs_at_any_size() -> None:
    graph = capture(FoldsBatch(), torch.randn(2, 6))
    x = torch.randn(5, 6)
    assert torch.equal(graph(x), F.relu(x))


def test_nan_weights_are_named() -> None:
    model, x = pico("plain")
    model.conv2.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(GraphError, match=r"NaN or infinity: conv2\.weight"):
        capture(model, x)


def test_an_example_without_a_batch_axis() -> None:
    with pytest.raises(ShapeError, match="no batch axis"):
        capture(nn.Identity(), torch.tensor(1.0))


def test_wrong_input_shape_at_run_time() -> None:
    from sarto.graph import evaluate

    graph = capture(*pico("plain"))
    with pytest.raises(ShapeError, match=r"must have shape \['batch', 3, 8, 8\]"):
        evaluate(graph, torch.randn(2, 3, 9, 9).double())
    with pytest.raises(
        ShapeError, match=r"input 'x' must have shape \['batch', 3, 8, 8\], got \[2, 3, 9, 9\]"
    ):
        graph(torch.randn(2, 3, 9, 9).double())
    with pytest.raises(ShapeError, match=r"takes 1 inputs \(x \(batch, 3, 8, 8\)\), 2 were given"):
        graph(torch.randn(2, 3, 8, 8).double(), torch.randn(2))
    with pytest.raises(
        ShapeError, match=r"input 'x' must be a tensor of shape \(batch, 3, 8, 8\), found list"
    ):
        graph([1.0])  # type: ignore[arg-type]


def test_only_a_training_module_takes_gradients_and_it_has_tensors_of_its_own() -> None:
    graph = capture(*pico("plain"), prove=False)
    plain, trained = graph.module().train(), graph.module(train=True)
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    name = min(graph.parameters)
    assert plain.get_parameter(name).data_ptr() == graph.tensors[name].data_ptr()
    assert trained.get_parameter(name).data_ptr() != graph.tensors[name].data_ptr()
