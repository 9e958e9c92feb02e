"""The paper's slicing: what trains in each stage, what stays, and that fusion and caching change no number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sarto import zoo
from sarto.engines.slicepack.paper import PaperSettings, paper_fragment, read_layers
from sarto.engines.slicepack.paper.adaption import (
    Adapted,
    adapt_layer,
    last_output_of,
    repair_losses,
    start_maps,
)
from sarto.engines.slicepack.paper.combining import combine
from sarto.engines.slicepack.paper.fragment import fuse
from sarto.engines.slicepack.paper.mixing import dropped
from sarto.engines.slicepack.paper.network import run, sliced_nodes, units_read
from sarto.engines.slicepack.paper.pooling import pool_layer, scores_of
from sarto.engines.slicepack.paper.task import Front, Task, fronts, make_task, silent
from sarto.engines.slicepack.settings import POSITIONS
from sarto.errors import GraphError, RequestError, ShapeError
from sarto.graph import ModelGraph, Selection, block, capture, expand_map, features, fold, repair, slice
from sarto.testing.pico import PICO, pico
from sarto.training import position_stride

STEPS = {"pool_steps": 2, "adapt_steps": 2, "combine_steps": 2, "lr": 1e-2}
NETS = ["plain", "residual", "mobile", "dense", "text"]
RECURRENT = ["rnn", "gru", "lstm"]


def donor(name: str) -> tuple[ModelGraph, Tensor, Tensor]:
    """A pico donor, twelve samples of three classes, and their labels."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(3).repeat_interleave(4)
    if name in RECURRENT or name == "text_cnn":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if name == "text_cnn":
                model = zoo.text_cnn(3, n_words=20, width=5, filters=4)
            else:
                model = zoo.recurrent(3, cell=name, n_words=20, width=5, hidden=6, bidirectional=True)
        inputs = torch.randint(0, 20, (12, 7), generator=generator)
        return capture(model.double().eval(), inputs[:2], prove=False), inputs, labels
    model, _ = pico(name)
    inputs = torch.randn((12, *PICO[name][1]), generator=generator, dtype=torch.float64)
    return capture(model, inputs[:2], prove=False), inputs, labels


def task(name: str, **changes: object) -> Task:
    graph, inputs, labels = donor(name)
    settings = PaperSettings.parse({**STEPS, **changes})
    return make_task(read_layers(graph), inputs, labels, 3, [1], settings)


def features_of(graph: ModelGraph, inputs: Tensor) -> Tensor:
    found = block(graph, end=features(graph).value)(inputs)
    assert isinstance(found, Tensor)
    return found


def stage(made: Task, place: int) -> Front:
    return [front for _, front in fronts(made)][place]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


class TwoLayers(torch.nn.Module):
    """Small enough to work out by hand: two hidden layers and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(2, 4), torch.nn.Linear(4, 3)
        self.last = torch.nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.two(torch.relu(self.one(x)))))


@pytest.mark.parametrize("dis_repair", ["dropped", "linear", "both"])
def test_the_loss_of_adaption_is_what_numpy_gives_for_both_readings(dis_repair: str) -> None:
    torch.manual_seed(0)
    model = TwoLayers().double().eval()
    inputs = torch.randn(5, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 2, 0])
    graph = capture(model, inputs[:2], prove=False)
    settings = PaperSettings.parse({"dis_repair": dis_repair, "gamma": 0.7})
    made = make_task(read_layers(graph), inputs, labels, 3, [1], settings)
    kept, rest = [0, 2], [1, 3]
    generator = np.random.default_rng(0)
    f, bias = generator.standard_normal((2, 2)), generator.standard_normal(2)
    l_map = generator.standard_normal((2, 2))
    head = generator.standard_normal((2, 3)), generator.standard_normal(2)
    w1, b1, w2, b2 = (p.detach().numpy() for p in list(model.parameters())[:4])
    trained = w1.copy(), b1.copy()
    trained[0][kept], trained[1][kept] = f, bias
    x = inputs.numpy()
    own = relu(x @ f.T + bias)

    def network(others: np.ndarray) -> np.ndarray:
        hidden = np.empty((5, 4))
        hidden[:, kept], hidden[:, rest] = own, others
        return relu(hidden @ w2.T + b2)

    teacher = relu(relu(x @ w1.T + b1) @ w2.T + b2)
    tilde, bar = network(own @ l_map.T), network(relu(x @ w1[rest].T + b1[rest]))
    logits = tilde @ head[0].T + head[1]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    positive = labels.numpy() == 1
    each = -np.where(positive, log_p[:, 1], log_p[:, 0])
    weight = np.where(positive, 5 / (2 * 2), 5 / (2 * 3))
    cls = (weight * each).sum() / weight.sum()
    miss = {"linear": ((tilde - teacher) ** 2).sum(1).mean(), "dropped": ((bar - teacher) ** 2).sum(1).mean()}
    dis = sum(miss.values()) / 2 if dis_repair == "both" else miss[dis_repair]
    selection = {"one.weight:0": (0, 2)}
    found = repair_losses(
        made,
        selection,
        sliced_nodes(made.donor, selection),
        {"one.weight": torch.tensor(trained[0]), "one.bias": torch.tensor(trained[1])},
        {("two.weight", 1, 0): torch.tensor(l_map)},
        (torch.tensor(head[0]), torch.tensor(head[1])),
        stage(made, 0),
        torch.arange(5),
    )
    assert float(found) == pytest.approx(cls + 0.7 * dis, rel=1e-12)


@pytest.mark.parametrize("name", [*NETS, "text_cnn", *RECURRENT])
def test_pooling_trains_one_layer_and_nothing_else(name: str) -> None:
    made = task(name)
    for place, (layer, front) in enumerate(fronts(made)):
        pooled = pool_layer(made, place, front, silent)
        assert pooled.keys() == layer.owned.keys()
        assert any(not torch.equal(pooled[key], made.tensors[key]) for key in pooled)
        others = [axes for axes in made.donor.layers if axes is not layer]
        assert not set(pooled) & {name for other in others for name in other.owned} or name in ("dense",)


def test_pooling_moves_the_weight_of_the_layer_by_the_gradient_of_the_loss() -> None:
    """One plain gradient step against finite differences of the loss written out."""
    made = task("plain", pool_steps=1, optimiser="sgd", alpha=0.3)
    place = 1
    layer, front = made.donor.layers[place], stage(made, place)
    pooled = pool_layer(made, place, front, silent)
    model, _ = pico("plain")

    def loss(weight: Tensor) -> float:
        with torch.no_grad():
            model.conv2.weight.copy_(weight)
            x = torch.nn.functional.max_pool2d(torch.relu(model.bn1(model.conv1(made.inputs))), 2)
            z = torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.hardswish(model.conv2(x)), 4)
            out = torch.nn.functional.gelu(model.fc1(z.flatten(1)))
            norm = z[made.positive].flatten(2).norm(dim=2).sum(1).mean()
            return float((out - made.teacher).square().sum(1).mean() + 0.3 * norm)

    start = made.tensors["conv2.weight"]
    step = (start - pooled["conv2.weight"]) / made.settings.lr
    for at in [(0, 0, 0, 0), (3, 5, 1, 2), (5, 7, 2, 2)]:
        bump = torch.zeros_like(start)
        bump[at] = 1e-6
        assert float(step[at]) == pytest.approx((loss(start + bump) - loss(start - bump)) / 2e-6, rel=1e-5)
    assert layer.group == "conv2.weight:0"


@pytest.mark.parametrize("name", [*NETS, "text_cnn", *RECURRENT])
def test_adaption_trains_the_kept_rows_the_map_and_the_head_alone(name: str) -> None:
    made = task(name, map_start="random")
    for place, (layer, front) in enumerate(fronts(made)):
        kept = tuple(range(0, layer.size, 2))
        before = start_maps(made, layer, front, made.tensors, kept, made.generator(1, place))
        found = adapt_layer(made, place, front, {n: made.tensors[n] for n in layer.owned}, kept, silent)
        assert found.tensors.keys() == layer.owned.keys()
        for key, tensor in found.tensors.items():
            changed = tensor != made.tensors[key]
            for axis in layer.owned[key]:
                expr = made.donor.graph.analysis.tensor_axes[key][axis]
                rows = changed.movedim(axis, 0).flatten(1).any(1) if changed.ndim > 1 else changed
                allowed = set(range(len(rows)))
                if name != "dense":
                    reps = len(rows) // layer.size
                    inner = (
                        np.arange(len(rows)) % layer.size
                        if name in RECURRENT
                        else np.arange(len(rows)) // reps
                    )
                    allowed = {int(row) for row in np.flatnonzero(np.isin(inner, kept))}
                assert set(torch.nonzero(rows).flatten().tolist()) <= allowed, (key, expr)
        if layer.group != "squeeze.weight:0":  # its units are zero on all samples: no gradient
            assert any(not torch.equal(found.maps[key], before[key]) for key in before)
        assert not torch.equal(found.head[0], made.head[0])


def test_with_dropped_units_as_repair_the_distillation_leaves_the_map_alone() -> None:
    """Without a classification loss (H is zero and stays), only f_i learns."""
    made = task("plain", dis_repair="dropped", head_start="zero", optimiser="sgd", lr_new=1e-9, gamma=1.0)
    front, layer = stage(made, 0), made.donor.layers[0]
    begun = start_maps(made, layer, front, made.tensors, (0, 1, 2, 3), made.generator(1, 0))
    found = adapt_layer(made, 0, front, {n: made.tensors[n] for n in layer.owned}, (0, 1, 2, 3), silent)
    key = ("conv2.weight", 1, 0)
    assert torch.equal(found.maps[key], begun[key])
    assert not torch.equal(found.tensors["conv1.weight"], made.tensors["conv1.weight"])


def test_combining_trains_all_layers_in_turn_and_keeps_the_head() -> None:
    made = task("plain")
    adapted, seen = [], []
    for place, (layer, front) in enumerate(fronts(made)):
        pooled = {n: made.tensors[n] for n in layer.owned}
        adapted.append(adapt_layer(made, place, front, pooled, tuple(range(layer.size // 2)), silent))
    found = combine(made, adapted, stage(made, 0), lambda what, done, total: seen.append((what, done, total)))
    assert [what for what, done, _ in seen if done == 1] == [f"combining 1..{i} of 3" for i in (1, 2, 3)]
    assert found.kept == {layer.group: tuple(range(layer.size // 2)) for layer in made.donor.layers}
    owned = {name for layer in made.donor.layers for name in layer.owned}
    assert found.tensors.keys() == owned
    for place, layer in enumerate(made.donor.layers):
        for name in layer.owned:
            half = len(found.tensors[name]) // 2
            assert not torch.equal(found.tensors[name][:half], adapted[place].tensors[name][:half])
            assert torch.equal(found.tensors[name][half:], made.tensors[name][half:])


@pytest.mark.parametrize("name", [*NETS, "text_cnn", *RECURRENT])
def test_the_ridge_start_is_the_least_squares_answer(name: str) -> None:
    """Where nothing pulls, no map explains the dropped units better: the gradient of its weighted error is nothing."""
    made = task(name, map_lam=0.0)
    front, layer = stage(made, 0), made.donor.layers[0]
    kept, rest = tuple(range(layer.size - 1)), (layer.size - 1,)
    maps = start_maps(made, layer, front, made.tensors, kept, made.generator(1, 0))
    seen = {key: at for key, at in layer.maps.items() if at is not None}
    assert seen.keys() <= maps.keys() == layer.maps.keys() and seen
    nodes = made.donor.nodes[front.start : last_output_of(made, layer)]
    values = run(made.donor, nodes, made.tensors, front.values, len(made.inputs))
    weights = made.outcome_weights[made.positive.to(torch.int64)].double()
    for key, (output, leaf) in seen.items():
        assert maps[key].shape == (1, layer.size - 1)
        read = units_read(made.donor, output, leaf, layer.group, values).double()
        step = position_stride((read.shape[2],), POSITIONS)
        rows = read[:, :, ::step].transpose(1, 2)
        root = weights.sqrt()[:, None, None].expand(-1, rows.shape[1], 1).reshape(-1, 1)
        flat = rows.reshape(-1, layer.size) * root
        given, wanted = flat[:, list(kept)], flat[:, list(rest)]
        best = torch.linalg.lstsq(given, wanted, driver="gelsd").solution
        assert bool(wanted.any())
        least, ours = (float((given @ m - wanted).square().sum()) for m in (best, maps[key].double().T))
        assert ours <= least + 1e-6 * float(wanted.square().sum())


@pytest.mark.parametrize("name", ["plain", "residual", "text", "text_cnn", "mobile", "dense"])
def test_fusion_is_the_unfused_network_of_the_core(name: str) -> None:
    """The core puts each map in as an operator of its own and folds it by another road."""
    graph, inputs, labels = donor(name)
    found = paper_fragment(graph, inputs, labels, 3, 1, PaperSettings.parse(STEPS))
    trained = found.trained
    wide = ModelGraph(
        graph.inputs, graph.nodes, graph.outputs, {**graph.tensors, **trained.tensors}, graph.parameters
    )
    by_reader: dict[str, dict[str, Tensor]] = {}
    sizes = {layer.group: layer for layer in read_layers(graph).layers}
    for layer in sizes.values():
        for consumption in graph.analysis.groups[layer.group].consumptions:
            weight = graph.node(consumption.node).args["weight"].name
            places = [key for key in layer.maps if key[0] == weight]
            if not places:
                continue
            kept = trained.kept[layer.group]
            whole = torch.zeros(layer.size, len(kept), dtype=torch.float64)
            whole[list(kept), torch.arange(len(kept))] = 1.0
            if places[0] in trained.maps:
                whole[list(dropped(layer.size, kept))] = trained.maps[places[0]]
            by_reader.setdefault(consumption.node, {})[layer.group] = whole
    maps = {
        node: expand_map(
            next(c.expr for c in graph.analysis.consumptions if c.node == node), of, found.selection
        )
        for node, of in by_reader.items()
    }
    unfused = repair(wide, found.selection, maps)
    torch.testing.assert_close(unfused(inputs), found.graph(inputs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fold(unfused)(inputs), found.graph(inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", RECURRENT)
def test_fusion_of_a_recurrent_layer_is_the_recurrence_that_reads_repaired_states(cell: str) -> None:
    """The repaired layer stepped by hand for a plain RNN; for gated ones, keeping everything is the donor."""
    graph, inputs, labels = donor(cell)
    found = paper_fragment(graph, inputs, labels, 3, 1, PaperSettings.parse({**STEPS, "map_start": "random"}))
    if cell != "rnn":
        whole = fuse(read_layers(graph), Adapted({}, {}, {}, found.trained.head))
        torch.testing.assert_close(whole.graph(inputs), graph(inputs))
        assert found.graph(inputs).shape == (12, 3)
        return
    full = {**graph.tensors, **found.trained.tensors}
    group = read_layers(graph).layers[0].group
    kept = list(found.trained.kept[group])
    rest = list(dropped(6, tuple(kept)))
    words = full["embedding.weight"][inputs]
    ends = []
    for suffix, order in (("l0", range(7)), ("l0_reverse", range(6, -1, -1))):
        w_in, w_hh = full[f"recurrent.weight_ih_{suffix}"], full[f"recurrent.weight_hh_{suffix}"]
        bias = full[f"recurrent.bias_ih_{suffix}"] + full[f"recurrent.bias_hh_{suffix}"]
        back = found.trained.maps[f"recurrent.weight_hh_{suffix}", 1, 0]
        state = torch.zeros(12, 3, dtype=torch.float64)
        for time in order:
            whole_state = torch.zeros(12, 6, dtype=torch.float64)
            whole_state[:, kept], whole_state[:, rest] = state, state @ back.T
            state = torch.tanh(words[:, time] @ w_in.T + whole_state @ w_hh.T + bias)[:, kept]
        ends.append(state)
    torch.testing.assert_close(features_of(found.graph, inputs), torch.cat(ends, 1))


def test_the_detector_of_the_fused_fragment_says_what_h_says_of_the_repaired_features() -> None:
    graph, inputs, labels = donor("plain")
    found = paper_fragment(graph, inputs, labels, 3, 1, PaperSettings.parse(STEPS))
    narrow = features_of(found.graph, inputs)
    kept = list(found.trained.kept["fc1.weight:0"])
    whole = torch.zeros(12, 10, dtype=torch.float64)
    whole[:, kept] = narrow
    whole[:, list(dropped(10, tuple(kept)))] = narrow @ found.trained.maps["fc2.weight", 1, 0].T
    weight, bias = found.trained.head
    torch.testing.assert_close(narrow @ found.detector[0].T + found.detector[1], whole @ weight.T + bias)


def test_the_cached_front_gives_the_numbers_of_the_whole_network() -> None:
    for name in ("plain", "residual", "gru"):
        made = task(name, pool_steps=1)
        for place, (layer, front) in enumerate(fronts(made)):
            whole = Front(0, made.given())
            assert layer.start == front.start
            cached = pool_layer(made, place, front, silent)
            for key, tensor in pool_layer(made, place, whole, silent).items():
                torch.testing.assert_close(cached[key], tensor)
            torch.testing.assert_close(
                scores_of(made, layer, front, {}), scores_of(made, layer, whole, {}), rtol=1e-10, atol=0
            )


def test_small_batches_see_the_norm_of_all_the_samples_of_the_class() -> None:
    made = task("plain", batch=5, pool_steps=3, alpha=10.0)
    found = pool_layer(made, 0, stage(made, 0), silent)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    assert scores_of(made, made.donor.layers[0], stage(made, 0), found).max() == 1.0


def test_the_seed_decides_everything_and_the_donor_does_not_change() -> None:
    graph, inputs, labels = donor("plain")
    before = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    settings = PaperSettings.parse({**STEPS, "batch": 5, "map_start": "random"})
    one, two, other = (
        paper_fragment(graph, inputs, labels, 3, 1, chosen)
        for chosen in (settings, settings, settings.replace(seed=1))
    )
    assert all(torch.equal(one.graph.tensors[name], two.graph.tensors[name]) for name in one.graph.tensors)
    assert not torch.equal(one.graph.tensors["fc2.weight"], other.graph.tensors["fc2.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.tensors.items())


def test_keeping_all_units_and_training_nothing_is_the_donor() -> None:
    graph, inputs, labels = donor("residual")
    settings = PaperSettings(beta=1.0, pool_steps=0, adapt_steps=0, combine_steps=0)
    found = paper_fragment(graph, inputs, labels, 3, 1, settings)
    torch.testing.assert_close(found.graph(inputs), graph(inputs))


def test_without_training_from_zero_maps_the_fragment_is_a_plain_slice() -> None:
    graph, inputs, labels = donor("plain")
    settings = PaperSettings(pool_steps=0, adapt_steps=0, combine_steps=0, map_start="zero")
    found = paper_fragment(graph, inputs, labels, 3, [0, 2], settings)
    torch.testing.assert_close(found.graph(inputs), slice(graph, Selection(found.trained.kept))(inputs))


def test_counts_may_be_given_layer_by_layer() -> None:
    graph, inputs, labels = donor("plain")
    found = paper_fragment(
        graph, inputs, labels, 3, 1, PaperSettings.parse(STEPS), keep={"conv1.weight:0": 3, "fc1.weight:0": 7}
    )
    assert found.selection.counts == {"conv1.weight:0": 3, "fc1.weight:0": 7}
    with pytest.raises(GraphError, match="no channel group 'conv9'"):
        paper_fragment(graph, inputs, labels, 3, 1, keep={"conv9": 2})


def test_streams_are_sliced_only_where_asked_for() -> None:
    graph, _, _ = donor("residual")
    inner = {layer.group for layer in read_layers(graph).layers}
    assert inner == {"a1.weight:0", "b1.weight:0"}
    assert {layer.group for layer in read_layers(graph, streams=True).layers} > inner


def test_an_embedding_is_no_layer() -> None:
    graph, _, _ = donor("rnn")
    assert [layer.group for layer in read_layers(graph).layers] == ["recurrent.weight_ih_l0:0"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": 3}, "class 3 is none of the donor's 3"),
        ({"classes": []}, "a fragment is of at least one class; none was named"),
        ({"keep": {"conv1.weight:0": 99}}, "'conv1.weight:0' has 8 units, 99 can't be kept"),
        ({"settings": PaperSettings(lr=1e300)}, "diverged: after .* take a smaller lr"),
    ],
)
def test_what_can_not_be_done_is_said(changes: dict[str, object], words: str) -> None:
    graph, inputs, labels = donor("plain")
    given = {"classes": 1, "settings": PaperSettings.parse(STEPS), **changes}
    with pytest.raises(RequestError, match=words):
        paper_fragment(graph, inputs, labels, 3, **given)


def test_a_class_without_samples_or_a_threshold_with_counts_is_refused() -> None:
    graph, inputs, labels = donor("plain")
    with pytest.raises(RequestError, match=r"classes \[2\] have none"):
        paper_fragment(graph, inputs[:8], labels[:8], 3, 2, PaperSettings.parse(STEPS))
    settings = PaperSettings.parse({**STEPS, "select": "threshold"})
    with pytest.raises(RequestError, match="a threshold decides by itself how many units are kept"):
        paper_fragment(graph, inputs, labels, 3, 1, settings, keep={"conv1.weight:0": 3})
    with pytest.raises(ShapeError, match="must have shape"):
        paper_fragment(graph, inputs[:, :1], labels, 3, 1, settings)
    with pytest.raises(GraphError, match="not by a linear layer"):
        read_layers(block(graph, end=features(graph).value))
