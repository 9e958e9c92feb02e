"""A graph trains, moves and compiles as its source module does: same losses, gradients, statistics, random numbers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto import zoo
from sarto.errors import GraphError
from sarto.graph import (
    BatchDim,
    Constant,
    Input,
    ModelGraph,
    Node,
    Ref,
    TensorRef,
    capture,
    evaluate,
    relative_difference,
)
from sarto.graph.run import SWITCHES
from sarto.graph.training_mode import with_state, with_training_values
from sarto.testing.tolerances import AUTOCAST, EXACT, GRADIENTS, TRAJECTORY
from sarto.training import has_bfloat16

CLASSES, WORDS, TOKENS = 3, 20, 5


def conv_net(p: float) -> nn.Module:
    """Batch norm, instance norm with and without statistics, channel dropout, dropout.

    No bias in front of a norm: its gradient is zero, so a relative difference says nothing.
    """
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout2d(p),
        nn.Conv2d(6, 5, 3, stride=2, bias=False),
        nn.InstanceNorm2d(5, affine=True, track_running_stats=True),
        nn.GELU(),
        nn.InstanceNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 1, bias=False),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(p),
        nn.Linear(16, CLASSES),
    )


#: name -> (model with a share of dropped activations, shape of one input; token ids where it has one axis)
MODELS: dict[str, tuple[Callable[[float], nn.Module], tuple[int, ...]]] = {
    "cnn": (conv_net, (3, 8, 8)),
    "resnet": (lambda p: zoo.cifar_resnet(CLASSES, 8, 4), (3, 8, 8)),
    "vit": (lambda p: zoo.vit(CLASSES, 8, 4, 12, 2, 3, 2.0, p, p), (3, 8, 8)),
    "swin": (lambda p: zoo.swin(CLASSES, 8, 2, 8, (2,), (2,), 2), (3, 8, 8)),
    "text cnn": (lambda p: zoo.text_cnn(CLASSES, WORDS, 5, 4, dropout=p), (TOKENS,)),
    "gru": (lambda p: zoo.recurrent(CLASSES, "gru", WORDS, 5, 6, 2, dropout=p), (TOKENS,)),
    "both ways lstm": (lambda p: zoo.recurrent(CLASSES, "lstm", WORDS, 5, 6, 2, True, dropout=p), (TOKENS,)),
    "rnn": (lambda p: zoo.recurrent(CLASSES, "rnn", WORDS, 5, 6, 2, False, "mean", dropout=p), (TOKENS,)),
}
DROPPING = ["cnn", "vit", "text cnn", "gru", "both ways lstm", "rnn"]
#: The families that a mode is tried on where each try takes a second.
FAMILIES = ["cnn", "vit", "gru"]


def draw(name: str, batch: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *MODELS[name][1])
    if len(shape) == 2:
        return torch.randint(1, WORDS, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@cache
def source(name: str, p: float = 0.0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, ModelGraph]:
    """A model and its graph; neither may be changed: copy the model, build a module that trains."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name][0](p).to(dtype)
    x = draw(name, 4, dtype)
    graph = capture(model, x, prove=False)
    return model, with_training_values(graph, model, (x,))


def step(model: nn.Module, x: Tensor, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a model in its mode and the gradient of each parameter."""
    torch.manual_seed(seed)
    labels = torch.arange(len(x), device=x.device) % CLASSES
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    return loss.detach(), {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def gap(one: Tensor, two: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return relative_difference([one.detach()], [two.detach()])


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_buffers() if "num_batches_tracked" not in name}


def assert_same(have: dict[str, Tensor], want: dict[str, Tensor], limit: float) -> None:
    assert set(have) == set(want)
    for name in want:
        assert gap(have[name], want[name]) <= limit, name


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_that_of_the_module(name: str) -> None:
    model, graph = source(name)
    model, module, x = copy.deepcopy(model).train(), graph.module(train=True), draw(name, 5, torch.float64)
    before = {key: value.clone() for key, value in buffers(module).items() if "running" in key}
    loss, gradients = step(model, x)
    have, found = step(module, x)
    assert gap(have, loss) <= GRADIENTS
    assert_same(found, gradients, GRADIENTS)
    known = buffers(module)
    assert_same({key: known[key] for key in before}, {key: buffers(model)[key] for key in before}, GRADIENTS)
    assert all(not torch.equal(known[key], value) for key, value in before.items()), "statistics move"
    assert before or name not in ("cnn", "resnet")


@pytest.mark.parametrize("name", DROPPING)
def test_the_same_seed_drops_the_same(name: str) -> None:
    model, graph = source(name, 0.3)
    x = draw(name, 5, torch.float64)
    want = [step(copy.deepcopy(model).train(), x, seed) for seed in (3, 4)]
    have = [step(graph.module(train=True), x, seed) for seed in (3, 4)]
    for (loss, gradients), (other, found) in zip(want, have, strict=True):
        assert gap(other, loss) <= GRADIENTS
        assert_same(found, gradients, GRADIENTS)
    assert want[0][0] != want[1][0], "another seed drops others"


@torch.no_grad()
@pytest.mark.parametrize("name", DROPPING)
def test_a_module_obeys_train_and_eval(name: str) -> None:
    model, graph = source(name, 0.3)
    model, x = copy.deepcopy(model), draw(name, 5, torch.float64)
    module = copy.deepcopy(graph.module(train=True))
    for train in (True, False, True, False):
        model.train(train)
        module.train(train)
        torch.manual_seed(7)
        want = model(x)
        torch.manual_seed(7)
        assert gap(module(x), want) <= EXACT[torch.float64]
    assert torch.equal(module(x), module(x)), "nothing is dropped in evaluation"
    assert not graph.module().training
    assert torch.equal(graph(x), evaluate(graph, x)[0][0])


@pytest.mark.parametrize("name", ["resnet", "vit", "gru"])
def test_twenty_steps_of_training_stay_together(name: str) -> None:
    model, graph = source(name, 0.0, torch.float32)
    model, module = copy.deepcopy(model).train(), graph.module(train=True)
    losses: list[list[float]] = []
    for net in (model, module):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for index in range(20):
            optimiser.zero_grad()
            losses[-1].append(float(step(net, draw(name, 8, torch.float32, index), index)[0]))
            optimiser.step()
    assert losses[0][0] != losses[0][-1]
    for want, have in zip(*losses, strict=True):
        assert have == pytest.approx(want, rel=TRAJECTORY)
    model.eval()
    x = draw(name, 5, torch.float32)
    with torch.no_grad():
        assert gap(with_state(graph, module)(x), model(x)) <= TRAJECTORY


def test_training_leaves_the_graph_and_the_source_as_they_were() -> None:
    model, graph = source("cnn")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = graph.module(train=True)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    step(module, draw("cnn", 4, torch.float64))
    optimiser.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.tensors.items() if name in before)


def test_weights_come_back_in_the_graphs_precision_and_are_a_copy() -> None:
    _, graph = source("cnn")
    module = graph.module(train=True).to(torch.float32)
    back = with_state(graph, module)
    assert {tensor.dtype for tensor in back.tensors.values()} == {torch.float64}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    x = draw("cnn", 4, torch.float64)
    assert gap(back(x), graph(x)) <= EXACT[torch.float32]


def test_weights_of_another_module_are_refused_by_name() -> None:
    _, graph = source("cnn")
    other = nn.Sequential(nn.Conv2d(3, 7, 3, bias=False))
    with pytest.raises(
        GraphError, match=r"'0\.weight' has shape \[6, 3, 3, 3\] .* and \[7, 3, 3, 3\].*no tensor '1\."
    ):
        with_state(graph, other)


class Tied(nn.Module):
    """One matrix looks words up and, under another name, scores them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 5)
        self.score = nn.Linear(5, WORDS, bias=False)
        self.score.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.score(torch.tanh(self.embedding(tokens).mean(1)))


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    model, x = Tied().double(), draw("gru", 4, torch.float64)
    graph = capture(model, x, prove=False)
    names = {"aten.embedding.default": "embedding.weight", "aten.linear.default": "score.weight"}
    nodes = [
        node.with_args(weight=TensorRef(names[node.op])) if node.op in names else node for node in graph.nodes
    ]
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    both = replace(graph, nodes=tuple(nodes), tensors=tensors, parameters=frozenset(tensors))
    assert len(both.tensors) == 2
    for each in (graph, both):
        module = each.module(train=True)
        assert len(list(module.parameters())) == 1
        want, have = (next(iter(step(net, x)[1].values())) for net in (copy.deepcopy(model), module))
        assert gap(have, want) <= GRADIENTS
        assert len({id(tensor) for tensor in with_state(each, module).tensors.values()}) == 1


class Attentive(nn.Module):
    """Two attentions that drop different shares; the second is used as often as `repeats` says, in training only."""

    def __init__(self, first: float, second: float, repeats: int = 1, fails: bool = False) -> None:
        super().__init__()
        self.first_drop, self.second_drop, self.repeats, self.fails = first, second, repeats, fails
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        p, q = (self.first_drop, self.second_drop) if self.training else (0.0, 0.0)
        x = F.scaled_dot_product_attention(x, x, self.inner(x), dropout_p=p)
        for _ in range(self.repeats if self.training else 1):
            x = F.scaled_dot_product_attention(x, x, x, dropout_p=q)
        if self.training and self.fails and bool(x.sum() > 0):
            x = -x
        return x


def shares(model: nn.Module) -> list[float]:
    x = torch.randn(2, 1, 3, 4)
    graph = with_training_values(capture(model, x, prove=False), model, (x,))
    return [node.args["dropout_p"] for node in graph.nodes if "attention" in node.op]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Attentive(0.25, 0.5), [0.25, 0.5]),
        (Attentive(0.0, 0.5), [0.0, 0.5]),
        (Attentive(0.0, 0.0), [0.0, 0.0]),
        (Attentive(0.25, 0.5, repeats=2), [0.0, 0.0]),
        (Attentive(0.25, 0.5, fails=True), [0.0, 0.0]),
    ],
    ids=["two shares", "one share", "none", "other attentions in training", "no export in training"],
)
@pytest.mark.parametrize("train", [True, False])
def test_attention_dropout_is_found_where_training_can_be_matched(
    model: nn.Module, found: list[float], train: bool
) -> None:
    model.train(train)
    assert shares(model) == found
    assert model.training == train, "the module is left as it was"
    assert model.inner.training == train


@pytest.mark.parametrize("where", ["layer", "attribute of a configuration"])
def test_a_share_is_looked_for_wherever_a_module_may_keep_it(where: str) -> None:
    class Config:
        def __init__(self) -> None:
            self.attention_dropout = 0.5

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.setting = nn.Dropout(0.5) if where == "layer" else Config()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            p = 0.5 if self.training else 0.0
            return F.scaled_dot_product_attention(self.inner(x), x, x, dropout_p=p)

    assert shares(Hidden()) == [0.5]


def test_norms_without_running_statistics_use_the_batch_in_both_modes() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, track_running_stats=False)).double()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    graph = capture(model, x, prove=False)
    for train in (True, False):
        assert torch.equal(graph.module(train=train)(x), model.train(train)(x))
    assert torch.equal(evaluate(graph, x)[0][0], model(x))


def test_a_batch_norm_that_averages_all_batches_keeps_its_statistics() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3, momentum=None)).double()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    module = capture(model, x, prove=False).module(train=True)
    assert torch.equal(module(x), model.train()(x))
    assert torch.equal(module.get_buffer("1.running_mean"), torch.zeros(3, dtype=torch.float64))


def test_every_switch_is_an_argument_of_its_operator() -> None:
    for op, argument in SWITCHES.items():
        _, name, variant = op.split(".")
        schema = getattr(getattr(torch.ops.aten, name), variant)._schema
        assert argument in [entry.name for entry in schema.arguments]


@pytest.mark.parametrize("name", MODELS)
def test_a_module_moves_to_another_precision(name: str) -> None:
    model, graph = source(name)
    module = copy.deepcopy(graph.module()).to(torch.float32)
    x = draw(name, 4, torch.float32)
    with torch.no_grad():
        want = copy.deepcopy(model).float().eval()(x)
    assert module(x).dtype == torch.float32
    assert gap(module(x), want) <= EXACT[torch.float32]


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_made_on_a_device_of_its_own(name: str) -> None:
    _, graph = source(name)
    x = draw(name, 4, torch.float64).to("meta")
    assert graph.sketch().module()(x).shape == (4, CLASSES)
    outputs, _ = evaluate(graph.sketch(), x)
    assert outputs[0].device.type == "meta"


def factories(dtype: Constant, device: Constant | None) -> ModelGraph:
    """x * w + ones(batch, 3) + full(3), the ones in the dtype and on the device that are given."""
    rows = (BatchDim(), 3)
    made = {"dtype": dtype, "layout": None, "device": device, "pin_memory": None}
    nodes = [
        Node("ones", "aten.ones.default", {"size": rows, **made}, (rows,), ("float64",)),
        Node("full", "aten.full.default", {"size": (3,), "fill_value": 2.0, **made}, ((3,),), ("float64",)),
        Node("mul", "aten.mul.Tensor", {"self": Ref("x"), "other": TensorRef("w")}, (rows,), ("float64",)),
    ]
    for name, one, two in (("some", "mul", "ones"), ("all", "some", "full")):
        args = {"self": Ref(one), "other": Ref(two), "alpha": 1}
        nodes.append(Node(name, "aten.add.Tensor", args, (rows,), ("float64",)))
    weights = {"w": torch.full((3,), 5.0, dtype=torch.float64)}
    return ModelGraph((Input("x", rows, "float64"),), tuple(nodes), ("all",), weights, frozenset(["w"]))


@pytest.mark.parametrize("device", [None, "cpu", "cuda", "model"])
@pytest.mark.parametrize("dtype", ["float64", "model"])
def test_what_a_graph_makes_is_made_where_and_as_the_model_is(dtype: str, device: str | None) -> None:
    graph = factories(Constant("dtype", dtype), None if device is None else Constant("device", device))
    x = torch.randn(2, 3, dtype=torch.float64)
    want = x * 5 + 3
    assert torch.equal(graph(x), want)
    assert torch.equal(evaluate(graph, x)[0][0], want)
    assert graph.module().to(torch.float32)(x.float()).dtype == torch.float32
    assert graph.sketch().module()(x.to("meta")).device.type == "meta"
    exported = torch.export.export(graph.module(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    longer = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(exported.module()(longer), longer * 5 + 3)


def test_any_input_name_becomes_a_parameter() -> None:
    names = ["x.1", "x_1", "class", "2nd", "torch", "self", "", "été", "input_2nd", "ones", "input"]
    rows = (BatchDim(), 2)
    inputs = tuple(Input(name, rows, "float64") for name in names)
    nodes, last = [], names[0]
    for place, name in enumerate(names[1:]):
        args = {"self": Ref(last), "other": Ref(name), "alpha": 2 ** (place + 1)}
        last = f"sum{place}"
        nodes.append(Node(last, "aten.add.Tensor", args, (rows,), ("float64",)))
    module = ModelGraph(inputs, tuple(nodes), (last,), {}, frozenset()).module()
    values = [torch.randn(3, 2, dtype=torch.float64) for _ in names]
    want = sum(2**place * value for place, value in enumerate(values))
    torch.testing.assert_close(module(*values), want)
    parameters = list(inspect.signature(module.forward).parameters)
    assert len(set(parameters)) == len(names)
    assert {"x_1", "ones", "input"} <= set(parameters)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_module_exports_again_in_either_mode(name: str) -> None:
    _, graph = source(name, 0.3)
    x, module = draw(name, 4, torch.float64), graph.module(train=True)
    for train in (True, False):
        module.train(train)
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        longer = draw(name, 6, torch.float64, 2)
        torch.manual_seed(5)
        want = copy.deepcopy(module)(longer)
        torch.manual_seed(5)
        assert gap(program.module()(longer), want) <= EXACT[torch.float64]


def assert_compiles(name: str, backend: str, limit: float) -> None:
    """A compiled module gives the loss, gradients and statistics of a step, and then the outputs of evaluation."""
    _, graph = source(name, 0.0, torch.float32)
    module, plain = graph.module(train=True), graph.module(train=True)
    x = draw(name, 4, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    loss, gradients = step(plain, x)
    have, found = step(compiled, x)
    assert gap(have, loss) <= limit
    assert_same({key.removeprefix("_orig_mod."): value for key, value in found.items()}, gradients, limit)
    assert_same(buffers(module), buffers(plain), limit)
    module.eval()
    plain.eval()
    with torch.no_grad():
        assert gap(compiled(x), plain(x)) <= limit
    torch.compiler.reset()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_compiles(name: str) -> None:
    assert_compiles(name, "aot_eager", EXACT[torch.float32])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_compiles_to_machine_code(name: str) -> None:
    assert_compiles(name, "inductor", TRAJECTORY)


@pytest.mark.parametrize("name", MODELS)
def test_autocast_computes_nearly_the_same_in_bfloat16(name: str) -> None:
    if "lstm" in name and not has_bfloat16():
        pytest.skip("torch has no bfloat16 LSTM for processors that don't compute in it")
    model, graph = source(name, 0.0, torch.float32)
    model, module, x = copy.deepcopy(model).train(), graph.module(train=True), draw(name, 6, torch.float32)
    losses = []
    for net in (model, module):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(step(net, x)[0])
    whole, _ = step(graph.module(train=True), x)
    assert gap(losses[1].float(), whole) <= AUTOCAST
    assert losses[1] == losses[0], "as the source does under autocast"
    assert losses[1] != whole, "something was computed in bfloat16"


@pytest.mark.parametrize("name", ["cnn", "wide resnet"])
def test_channels_last_gives_the_same_step(name: str) -> None:
    """The ResNet is a wide one: torch dies of strided shortcuts that read few channels (oneDNN issue 6035)."""
    x = draw("cnn", 4, torch.float32)
    if name == "cnn":
        _, graph = source(name, 0.0, torch.float32)
    else:
        torch.manual_seed(0)
        model = zoo.cifar_resnet(CLASSES, 8, 16)
        graph = with_training_values(capture(model, x, prove=False), model, (x,))
    loss, gradients = step(graph.module(train=True), x)
    last = graph.module(train=True).to(memory_format=torch.channels_last)
    have, found = step(last, x.contiguous(memory_format=torch.channels_last))
    assert gap(have, loss) <= EXACT[torch.float32]
    assert_same(found, gradients, EXACT[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_module_trains_on_a_gpu(name: str) -> None:
    model, graph = source(name)
    module, x = graph.module(train=True).to("cuda"), draw(name, 5, torch.float64).to("cuda")
    loss, gradients = step(copy.deepcopy(model).train(), x.cpu())
    have, found = step(module, x)
    assert have.device.type == "cuda"
    assert gap(have.cpu(), loss) <= GRADIENTS
    assert_same({key: value.cpu() for key, value in found.items()}, gradients, GRADIENTS)
    moved = replace(graph, tensors={key: value.cuda() for key, value in graph.tensors.items()})
    outputs, _ = evaluate(moved, x)
    assert gap(outputs[0].cpu(), graph(x.cpu())) <= GRADIENTS
