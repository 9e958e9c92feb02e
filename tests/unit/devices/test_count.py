"""Counts by hand, where PyTorch's counter has nothing to say; and what does not fit is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sarto.devices import count, flops_by_node, peak_bytes, timeline
from sarto.errors import GraphError
from sarto.graph import BatchDim, Input, ModelGraph, Node, Ref, TensorRef, capture


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vector, self.matrix = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.vector) + (self.matrix @ self.vector)


def test_products_with_a_vector_count_two_for_each_multiply_add() -> None:
    graph = capture(Product(), torch.ones(2, 5, 8), prove=False)
    # (5, 8) @ (8,) twice: once for the sample, once for the stored matrix.
    assert count(graph).flops == 2 * 5 * 8 + 2 * 5 * 8
    assert sum(flops_by_node(graph, batch=4).values()) == 4 * 2 * 5 * 8 + 2 * 5 * 8


def test_a_recurrent_layer_counts_each_matrix_once_a_step() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(8, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0][:, -1]

    graph = capture(Last(), torch.ones(2, 6, 8), prove=False)
    gates, hidden, steps = 4, 4, 6
    assert count(graph).flops == steps * 2 * gates * hidden * (8 + hidden)


def einsum(equation: str, *shapes: tuple[int, ...], path: tuple[int, ...] | None = None) -> ModelGraph:
    """A graph that reads one input and does one einsum of stored tensors."""
    tensors = {f"t{place}": torch.ones(shape) for place, shape in enumerate(shapes)}
    made = torch.einsum(equation, *tensors.values())
    args = {"equation": equation, "tensors": tuple(map(TensorRef, tensors)), "path": path}
    node = Node("y", "aten.einsum.default", args, (tuple(made.shape),), ("float32",))
    return ModelGraph((Input("x", (BatchDim(),), "float32"),), (node,), ("y",), tensors, frozenset(tensors))


def counted(equation: str, *shapes: tuple[int, ...], path: tuple[int, ...] | None = None) -> int:
    with FlopCounterMode(display=False) as counter:
        torch.ops.aten.einsum.default(equation, [torch.ones(shape) for shape in shapes], path=path)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("equation", "shapes", "path"),
    [
        ("ab,bc,cd,de->ae", ((2, 3), (3, 4), (4, 5), (5, 7)), None),
        ("ab,bc,cd,de->ae", ((2, 3), (3, 4), (4, 5), (5, 7)), (2, 3, 1, 2, 0, 1)),
        ("ab,bc,cd,de->ae", ((2, 3), (3, 4), (4, 5), (5, 7)), (3, 0, 0, 1, 1, 0)),
        ("ab,bc", ((2, 3), (3, 4)), None),
        ("...ab,...bc->...ac", ((1, 2, 3), (5, 3, 4)), None),
        ("...ab,...bc->ac", ((5, 2, 3), (5, 3, 4)), None),
        ("...ab,bc", ((6, 2, 3), (3, 4)), None),
        ("xab,bc->ac", ((6, 2, 3), (3, 4)), None),
        ("aab,bc->ac", ((3, 3, 4), (4, 5)), None),
        ("a,b->ab", ((3,), (4,)), None),
        ("ab,ab->", ((2, 3), (2, 3)), None),
        ("ab->ba", ((2, 3),), None),
        ("ab, bc -> ac", ((2, 1), (3, 4)), None),
    ],
)
def test_einsum_counts_what_torch_multiplies(
    equation: str, shapes: tuple[tuple[int, ...], ...], path: tuple[int, ...] | None
) -> None:
    graph = einsum(equation, *shapes, path=path)
    assert count(graph).flops == counted(equation, *shapes, path=path)


@given(st.data())
def test_random_einsums_count_what_torch_multiplies(data: st.DataObject) -> None:
    sizes = {letter: data.draw(st.integers(1, 4)) for letter in "abcde"}
    terms = data.draw(st.lists(st.text("abcde", min_size=1, max_size=4), min_size=1, max_size=4))
    letters = sorted(set("".join(terms)))
    made = "".join(data.draw(st.lists(st.sampled_from(letters), unique=True)))
    equation = f"{','.join(terms)}->{made}"
    shapes = [tuple(sizes[letter] for letter in term) for term in terms]
    assert count(einsum(equation, *shapes)).flops == counted(equation, *shapes)


def broken(op: str, **args: object) -> ModelGraph:
    graph = einsum("ab,bc->ac", (2, 3), (3, 4))
    node = Node("y", op, {**graph.nodes[0].args, **args}, graph.nodes[0].shapes, ("float32",))  # type: ignore[dict-item]
    return ModelGraph(graph.inputs, (node,), ("y",), graph.tensors, graph.parameters)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"equation": "abc,bc->ac"}, r"'abc,bc->ac' does not fit tensors of shape \[\[2, 3\], \[3, 4\]\]"),
        ({"equation": "ab->ac"}, "does not fit tensors"),
        ({"tensors": 3}, "must be a list of tensors"),
        ({"tensors": (TensorRef("t0"), 3)}, "must be a list of tensors"),
    ],
)
def test_an_einsum_that_does_not_fit_is_refused(args: dict[str, object], words: str) -> None:
    with pytest.raises(GraphError, match=words) as caught:
        flops_by_node(broken("aten.einsum.default", **args))
    assert caught.value.where == "y"


def test_a_product_of_no_tensors_is_refused() -> None:
    with pytest.raises(GraphError, match="no tensor: 3"):
        flops_by_node(broken("aten.mm.default", self=3))


def image(nodes: tuple[Node, ...], outputs: tuple[str, ...]) -> ModelGraph:
    inputs = (Input("x", (BatchDim(), 10), "float32"), Input("unread", (BatchDim(), 1000), "float32"))
    return ModelGraph(inputs, nodes, outputs, {}, frozenset())


def test_a_graph_without_nodes_holds_its_input() -> None:
    assert timeline(image((), ("x",))) == ()
    assert peak_bytes(image((), ("x",))) == 40
    assert peak_bytes(image((), ("x",)), batch=3) == 120


def test_an_input_that_nothing_reads_takes_no_memory() -> None:
    relu = Node("y", "aten.relu.default", {"self": Ref("x")}, ((BatchDim(), 10),), ("float32",))
    assert [moment.live_bytes for moment in timeline(image((relu,), ("y",)))] == [80]


def test_memory_is_the_largest_moment_of_a_chain_and_of_a_shortcut() -> None:
    sizes = {"a": 100, "b": 300, "c": 50}
    layers: Callable[[str, str], Node] = lambda name, before: Node(  # noqa: E731
        name, "aten.linear.default", {"input": Ref(before)}, ((BatchDim(), sizes[name]),), ("float32",)
    )
    chain = (layers("a", "x"), layers("b", "a"), layers("c", "b"))
    live = [4 * (10 + 100), 4 * (100 + 300), 4 * (300 + 50)]
    assert [moment.live_bytes for moment in timeline(image(chain, ("c",)))] == live
    kept = [size + 4 * 10 for size in live[1:]]
    assert [moment.live_bytes for moment in timeline(image(chain, ("c", "x")))] == [live[0], *kept]
    assert peak_bytes(image(chain, ("c",))) == max(live) == math.prod([4, 400])
