"""A graph on disk comes back as it was, with the same hash, and without reading more than is asked for."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sarto.errors import GraphError, StoreError
from sarto.graph import BatchDim, Constant, Input, ModelGraph, Node, Ref, Selection, capture, slice
from sarto.graph.arguments import Kind, Scope, argument_problems, form_of
from sarto.graph.encoding import decode, encode
from sarto.graph.file import (
    GRAPH_NAME,
    WEIGHTS_NAME,
    graph_hash,
    hash_of,
    read_graph,
    read_graph_files,
    write_graph,
    write_weights,
)
from sarto.graph.lazy import LazyTensors
from sarto.graph.model import Arg
from sarto.graph.operators import ALLOWED, default_args, overload
from sarto.graph.validity import DTYPES, check_graph, check_shapes
from sarto.testing.pico import PICO, pico


@cache
def captured(name: str) -> ModelGraph:
    return capture(*pico(name), prove=False)


def one_node(op: str, output: str = "float64", **args: Arg) -> ModelGraph:
    """A graph of one operator on `x` of shape (batch, 3)."""
    batch = BatchDim()
    node = Node("y", op, {**default_args(op), **args}, ((batch, 3),), (output,))
    return ModelGraph((Input("x", (batch, 3), "float64"),), (node,), ("y",), {}, frozenset())


def assert_same(one: ModelGraph, two: ModelGraph) -> None:
    assert (one.inputs, one.nodes, one.outputs) == (two.inputs, two.nodes, two.outputs)
    assert (one.parameters, dict(one.refused)) == (two.parameters, dict(two.refused))
    assert set(one.tensors) == set(two.tensors)
    for name, tensor in one.tensors.items():
        assert tensor.dtype == two.tensors[name].dtype
        assert torch.equal(tensor, two.tensors[name])


@pytest.mark.parametrize("name", PICO)
def test_a_graph_comes_back_bit_for_bit_and_is_written_the_same_again(name: str, tmp_path: Path) -> None:
    graph = replace(
        captured(name), refused={"conv1.weight:0": "differs by 3e-2 \N{GREEK SMALL LETTER DELTA}"}
    )
    first = write_graph(graph, tmp_path / "first")
    again = read_graph(
        tmp_path / "first", graph_hash=first.graph_hash, weights_hash=first.weights_hash, verify=True
    )
    assert_same(graph, again)
    model, x = pico(name)
    assert torch.equal(again(x), model(x))
    second = write_graph(again, tmp_path / "second")
    assert (second.graph_hash, second.weights_hash) == (first.graph_hash, first.weights_hash)
    assert second.graph_path.read_bytes() == first.graph_path.read_bytes()
    assert second.weights_path.read_bytes() == first.weights_path.read_bytes()


def test_hashes_and_size_are_those_of_the_files(tmp_path: Path) -> None:
    written = write_graph(captured("plain"), tmp_path)
    for path, expected in [
        (written.graph_path, written.graph_hash),
        (written.weights_path, written.weights_hash),
    ]:
        assert expected == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert written.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [GRAPH_NAME, WEIGHTS_NAME]


def test_the_hash_of_a_graph_is_that_of_its_files_and_follows_every_weight(tmp_path: Path) -> None:
    graph = captured("residual")
    written = write_graph(graph, tmp_path)
    assert graph_hash(graph, weights=False) == written.graph_hash == graph_hash(graph.sketch(), weights=False)
    whole = graph_hash(graph)
    assert whole == hash_of(f"{written.graph_hash}\n{written.weights_hash}\n".encode())
    assert (
        whole
        == graph_hash(read_graph(tmp_path))
        == graph_hash(replace(graph, tensors=dict(reversed(graph.tensors.items()))))
    )
    name = next(iter(graph.tensors))
    nudged = {**graph.tensors, name: graph.tensors[name] + 1e-9}
    assert graph_hash(replace(graph, tensors=nudged)) != whole
    with pytest.raises(GraphError, match="has no data"):
        graph_hash(graph.sketch())


@pytest.mark.parametrize(("kind", "made"), [("model", "float64"), ("float16", "float16")])
def test_a_type_may_be_the_graphs_own(kind: str, made: str) -> None:
    own = {"dtype": Constant("dtype", kind), "device": Constant("device", "model")}
    graph = one_node("aten.zeros_like.default", made, self=Ref("x"), **own)
    again = decode(encode(graph), {})
    assert again.nodes == graph.nodes
    check_shapes(again)
    with pytest.raises(GraphError, match="must be an allowed layout, got 'model'"):
        encode(one_node("aten.zeros_like.default", self=Ref("x"), layout=Constant("layout", "model")))


def test_the_order_of_tensors_and_arguments_does_not_change_the_bytes(tmp_path: Path) -> None:
    graph = captured("mobile")
    shuffled = replace(
        graph,
        tensors=dict(reversed(graph.tensors.items())),
        nodes=tuple(replace(node, args=dict(reversed(node.args.items()))) for node in graph.nodes),
    )
    one, two = write_graph(graph, tmp_path / "one"), write_graph(shuffled, tmp_path / "two")
    assert (one.graph_hash, one.weights_hash) == (two.graph_hash, two.weights_hash)


def test_the_text_does_not_depend_on_the_weights_and_every_part_of_the_graph_changes_it() -> None:
    graph = captured("plain")
    other = replace(graph, tensors={name: tensor + 1 for name, tensor in graph.tensors.items()})
    assert encode(graph) == encode(other)
    last = graph.nodes[-1]
    changes: list[ModelGraph] = [
        replace(graph, inputs=(replace(graph.inputs[0], dtype="float32"),)),
        replace(graph, outputs=(graph.nodes[0].name,)),
        replace(graph, parameters=frozenset()),
        replace(graph, refused={"conv1.weight:0": "why"}),
        replace(graph, nodes=(*graph.nodes[:-1], last.with_args(bias=None))),
        replace(graph, nodes=(*graph.nodes[:-1], replace(last, shapes=((BatchDim(), 4),)))),
    ]
    assert len({encode(changed) for changed in [graph, *changes]}) == 1 + len(changes)


def test_reading_shapes_slicing_a_sketch_and_analysing_touch_no_weights(tmp_path: Path) -> None:
    graph = captured("residual")
    written = write_graph(graph, tmp_path)
    data = written.weights_path.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    written.weights_path.write_bytes(data[:head])

    cut_short = read_graph(tmp_path)
    sketch = cut_short.sketch()
    assert {name: tensor.shape for name, tensor in sketch.tensors.items()} == {
        name: tensor.shape for name, tensor in graph.tensors.items()
    }
    assert list(cut_short.analysis.groups) == list(graph.analysis.groups)
    half = Selection({graph.analysis.sliceable[0].id: (0, 1)})
    assert slice(sketch, half).nodes == slice(graph, half).nodes
    check_shapes(cut_short)
    with pytest.raises(
        StoreError, match=r"tensor 'fc\.weight' can't be read .* cut short \(\d.* bytes\); fetch"
    ):
        cut_short.tensors["fc.weight"]


def test_slicing_a_read_graph_equals_slicing_the_original(tmp_path: Path) -> None:
    graph = captured("dense")
    write_graph(graph, tmp_path)
    lazy = read_graph(tmp_path)
    chosen = Selection({group.id: tuple(range(0, group.size, 2)) for group in graph.analysis.sliceable})
    assert_same(slice(graph, chosen), slice(lazy, chosen))


def test_a_read_tensor_is_a_view_and_writing_into_it_leaves_the_file_alone(tmp_path: Path) -> None:
    written = write_graph(captured("plain"), tmp_path)
    tensors = read_graph(tmp_path).tensors
    before = tensors["conv1.weight"].clone()
    tensors["conv1.weight"].zero_()
    assert torch.equal(read_graph(tmp_path).tensors["conv1.weight"], before)
    assert hash_of(written.weights_path.read_bytes()) == written.weights_hash


def test_a_read_graph_outlives_its_file(tmp_path: Path) -> None:
    graph = captured("plain")
    written = write_graph(graph, tmp_path)
    lazy = read_graph(tmp_path)
    written.weights_path.unlink()
    assert_same(graph, lazy)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("positions", [[0, 1, 2], [2], [1, 2], [2, 0], [0, 2], [1, 1], []])
def test_selected_positions_are_those_of_index_select(
    axis: int, positions: list[int], tmp_path: Path
) -> None:
    tensor = torch.randn(3, 4, 5)
    tensors = _stored({"w": tensor}, tmp_path)
    wanted = torch.tensor(positions, dtype=torch.int64)
    assert torch.equal(tensors.select("w", axis, wanted), tensor.index_select(axis, wanted))
    assert torch.equal(tensors.select("w", axis, positions), tensor.index_select(axis, wanted))


def test_neighbouring_rows_are_selected_without_a_copy(tmp_path: Path) -> None:
    tensors = _stored({"w": torch.arange(12.0).reshape(4, 3)}, tmp_path)
    rows = tensors.select("w", 0, [1, 2])
    assert rows.data_ptr() == tensors["w"].data_ptr() + 3 * 4
    with pytest.raises(IndexError):
        tensors.select("w", 0, [3, 4])


def test_every_type_size_and_layout_is_stored_as_the_library_reads_it(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors: dict[str, Tensor] = {
        f"of_{name}": torch.arange(5 + place).to(dtype) for place, (name, dtype) in enumerate(DTYPES.items())
    }
    tensors |= {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5),
        "turned": base.t(),
        "part": base[1:, ::2],
    }
    tensors |= {"shared": base, "parameter": torch.nn.Parameter(torch.ones(2))}
    lazy = _stored(tensors, tmp_path)
    library = load_file(tmp_path / "w")
    assert set(lazy) == set(library) == set(tensors)
    for name, tensor in tensors.items():
        assert lazy.shapes[name] == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(lazy[name], tensor.detach()) and torch.equal(library[name], tensor.detach())
        assert lazy[name].data_ptr() % tensor.element_size() == 0, "can be used where it is mapped"


def test_the_mapping_knows_its_names_without_reading(tmp_path: Path) -> None:
    tensors = _stored({"a": torch.ones(2), "b.c": torch.zeros(1)}, tmp_path)
    assert (len(tensors), set(tensors), "a" in tensors, "x" in tensors) == (2, {"a", "b.c"}, True, False)
    assert repr(tensors) == f"LazyTensors({str(tmp_path / 'w')!r}, 2 tensors, 0 read)"
    with pytest.raises(KeyError):
        tensors["x"]


def test_numbers_without_end_batches_and_constants_have_forms_of_their_own() -> None:
    batch = BatchDim(2)
    zeros: dict[str, Arg] = {"size": (batch, 3), "dtype": Constant("dtype", "float64")}
    zeros |= {"device": Constant("device", "cpu"), "layout": Constant("layout", "strided")}
    for graph in (
        one_node("aten.clamp.default", self=Ref("x"), min=-math.inf, max=math.inf),
        one_node("aten.mul.Scalar", self=Ref("x"), other=-0.0),
        one_node("aten.add.Scalar", self=Ref("x"), other=1.0000000000000002),
        one_node("aten.add.Scalar", self=Ref("x"), other=batch),
        one_node("aten.add.Scalar", self=Ref("x"), other=True),
        one_node("aten.zeros.default", **zeros),
        one_node("aten.sum.dim_IntList", self=Ref("x"), dim=None),
        one_node("aten.index.Tensor", self=Ref("x"), indices=(None, Ref("x"))),
        one_node("aten.slice.Tensor", self=Ref("x"), end=2**63 - 1),
    ):
        again = decode(encode(graph), {})
        assert again.nodes == graph.nodes
        for name, arg in graph.nodes[0].args.items():
            assert repr(again.nodes[0].args[name]) == repr(arg), "1 is not 1.0, nor True"
    nan = decode(encode(one_node("aten.mul.Scalar", self=Ref("x"), other=math.nan)), {})
    assert math.isnan(nan.nodes[0].args["other"])  # type: ignore[arg-type]


def test_a_number_may_stand_for_the_second_tensor_of_an_operator_and_nowhere_else() -> None:
    graph = one_node("aten.mul.Tensor", self=Ref("x"), other=0.5)
    again = decode(encode(graph), {})
    assert again.nodes == graph.nodes
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    assert torch.equal(again(x), x * 0.5)
    with pytest.raises(GraphError, match="argument 'self' must be tensor, got 0"):
        encode(one_node("aten.mul.Tensor", self=0.5, other=Ref("x")))


@pytest.mark.parametrize("op", sorted(ALLOWED))
def test_every_allowed_operator_can_be_stored_with_its_defaults(op: str) -> None:
    samples: dict[str, Arg] = {
        "tensor": Ref("x"),
        "tensor or number": 0.5,
        "int": 1,
        "float": 0.5,
        "number": 1,
        "bool": False,
        "text": "a",
    }
    samples |= {"dtype": Constant("dtype", "float32")}

    def sample(kind: Kind) -> Arg:
        return (samples[kind.leaf],) if kind.is_list else samples[kind.leaf]

    try:
        overload(op)
    except GraphError as error:
        assert "torch" in str(error) and "does not have it" in str(error)
        return
    form = form_of(op)
    args = {name: sample(kind) for name, kind in form.kinds.items() if name not in form.defaults}
    node = Node("y", op, {**args, **default_args(op)}, (), ())
    assert list(argument_problems(node, form, Scope({"x": 1}, set(), set()))) == []


@pytest.mark.parametrize("name", PICO)
def test_recorded_shapes_are_checked_without_data(name: str) -> None:
    graph = captured(name)
    check_shapes(graph)
    check_shapes(slice(graph, Selection({g.id: (0,) for g in graph.analysis.sliceable})))
    last = graph.nodes[-1]
    for wrong in ((BatchDim(), 99), (BatchDim(2), *last.shape[1:]), (1_000, *last.shape[1:])):
        with pytest.raises(
            GraphError, match=rf"node {last.name!r} is recorded as .*, but {last.op} gives \(batch, "
        ):
            check_shapes(replace(graph, nodes=(*graph.nodes[:-1], replace(last, shapes=(wrong,)))))
    with pytest.raises(GraphError, match=r"recorded as \(batch.* int8, but"):
        check_shapes(replace(graph, nodes=(*graph.nodes[:-1], replace(last, dtypes=("int8",)))))


def test_shapes_of_factories_and_of_operators_with_several_outputs_are_checked() -> None:
    batch = BatchDim()
    check_shapes(one_node("aten.zeros.default", size=(batch, 3), dtype=Constant("dtype", "float64")))
    pick: dict[str, Arg] = {"source": Ref("top"), "index": 1}
    top = Node(
        "top",
        "aten.topk.default",
        {**default_args("aten.topk.default"), "self": Ref("x"), "k": 2},
        ((batch, 2), (batch, 2)),
        ("float64", "int64"),
    )
    graph = ModelGraph(
        (Input("x", (batch, 3), "float64"),),
        (top, Node("place", "getitem", pick, ((batch, 2),), ("int64",))),
        ("place",),
        {},
        frozenset(),
    )
    check_shapes(graph)
    assert decode(encode(graph), {}).nodes == graph.nodes
    with pytest.raises(GraphError, match=r"node 'top': aten\.topk\.default can't run with its arguments"):
        check_shapes(replace(graph, nodes=(top.with_args(k=9), graph.nodes[1])))


def test_a_sketch_or_an_unsafe_name_is_not_written_and_nothing_is_left_behind(tmp_path: Path) -> None:
    graph = captured("plain")
    with pytest.raises(
        GraphError, match=r"can't be written.*tensor 'conv1\.weight' has no data \(the graph is a sketch\)"
    ):
        write_graph(graph.sketch(), tmp_path / "new")
    with pytest.raises(GraphError, match=r"tensor '\.\./x': a name is made of letters, digits"):
        write_graph(replace(graph, tensors={**graph.tensors, "../x": torch.ones(1)}), tmp_path / "new")
    with pytest.raises(GraphError, match="tensor 'z': the type 'complex64' is not allowed"):
        check_graph(replace(graph, tensors={**graph.tensors, "z": torch.ones(1, dtype=torch.complex64)}))
    for tensor, found in [
        (torch.eye(2).to_sparse(), r"stored as torch\.sparse_coo; make it dense first"),
        (torch.ones(1, dtype=torch.complex64), r"type torch\.complex64, which can't be stored"),
    ]:
        with pytest.raises(GraphError, match=found):
            write_weights({"z": tensor}, io.BytesIO())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_failed_write_leaves_a_readable_graph_and_no_temporary_files(
    broken: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = captured("plain")
    write_graph(old, tmp_path)
    real, calls = getattr(os, broken), list[int]()

    def fails(*args: object) -> object:
        calls.append(1)
        if len(calls) == at:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, broken, fails)
    new = replace(old, tensors={name: tensor + 1 for name, tensor in old.tensors.items()})
    with pytest.raises(OSError, match="No space left"):
        write_graph(new, tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [GRAPH_NAME, WEIGHTS_NAME]
    assert_same(read_graph(tmp_path), new if (broken, at) == ("replace", 2) else old)


def test_a_place_that_can_hold_no_graph_is_refused_in_words(tmp_path: Path) -> None:
    graph = captured("plain")
    (tmp_path / "file").write_text("mine")
    for place, said in (("file", "it is a file"), ("file/below", "not a directory"), ("a\0b", "null byte")):
        with pytest.raises(
            StoreError, match=rf"no graph can be written to .*: .*{said}; name a folder"
        ) as caught:
            write_graph(graph, tmp_path / place)
        assert "Errno" not in str(caught.value)
    for name in (GRAPH_NAME, WEIGHTS_NAME):
        (tmp_path / "taken" / name).mkdir(parents=True)
        with pytest.raises(StoreError, match=rf"{name} in it must be a file and is a folder"):
            write_graph(graph, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("read", [read_graph, lambda place: read_graph_files(place / "a", place / "b")])
def test_a_file_that_is_missing_is_told_without_error_numbers(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"can't be opened.*no such file or directory") as caught:
        read(tmp_path / "none")
    assert "Errno" not in str(caught.value)


def test_the_two_files_may_have_any_names(tmp_path: Path) -> None:
    graph = captured("text")
    written = write_graph(graph, tmp_path)
    one, two = written.graph_path.rename(tmp_path / "ab12"), written.weights_path.rename(tmp_path / "cd34")
    assert_same(
        graph,
        read_graph_files(
            one, two, graph_hash=written.graph_hash, weights_hash=written.weights_hash, verify=True
        ),
    )


def _stored(tensors: dict[str, Tensor], folder: Path) -> LazyTensors:
    with (folder / "w").open("wb") as file:
        write_weights(tensors, file)
    return LazyTensors(folder / "w")
