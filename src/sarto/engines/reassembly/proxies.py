"""Zero-cost proxies of a chain's quality, for comparison with the cascade; each from one or two batches.

They look at nonlinear activations in evaluation mode (ReLU and its kin), nothing else: no linear layers, no dropout.

Reference:
    NASWOT: Mellor et al., Neural Architecture Search without Training, ICML 2021, equation (2).
    SWAP: Peng et al., SWAP-NAS: sample-wise activation patterns, ICLR 2024, definition 3.2 (ReLU-like activations).
    NEAR: Husistein, Reiher, Eckhoff, network expressivity by activation rank, 2024 (arXiv 2408.08776), equation (3).
    ZiCo: Li et al., Zero-cost proxy via inverse coefficient of variation on gradients, ICLR 2023, equation (6).
    jacov: Mellor et al., first version, 2020: correlations of input Jacobians.
    Differs: NASWOT is divided by the number of images; ZiCo takes the classes that the chain itself predicts where no
    labels are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.errors import RequestError
from sarto.graph import ModelGraph, evaluate

#: Nonlinear activations that are looked at.
ACTIVATIONS = frozenset(
    f"aten.{name}.default"
    for name in (
        "relu",
        "relu6",
        "leaky_relu",
        "gelu",
        "silu",
        "hardswish",
        "hardtanh",
        "elu",
        "selu",
        "celu",
        "mish",
    )
)
#: Units of one activation that are looked at; more are thinned evenly.
MOST_UNITS = 4_096


def naswot(graph: ModelGraph, inputs: Tensor) -> float:
    """log |det K| / n, K counting the units on which two images agree in sign."""
    n = len(inputs)
    kernel = torch.zeros(n, n, dtype=torch.float64)
    for codes in _codes(graph, inputs):
        signs = codes.to(torch.float64)
        kernel += signs @ signs.T + (1 - signs) @ (1 - signs).T
    found = torch.linalg.slogdet(kernel)
    return float(found.logabsdet) / n if float(found.sign) > 0 else -math.inf


def swap(graph: ModelGraph, inputs: Tensor) -> float:
    """Number of different sign patterns that units show over the images.

    Differs: counted layer by layer and summed; the paper counts a pattern that two layers show once.
    """
    return float(sum(len(torch.unique(codes.T, dim=0)) for codes in _codes(graph, inputs)))


def near(graph: ModelGraph, inputs: Tensor) -> float:
    """Sum over activations of the effective rank: the exponential of the entropy of the singular values.

    Differs: of what layers give after their activation function; the paper adds the rank of what it reads.
    """
    total = 0.0
    for values in _activations(graph, inputs):
        singular = torch.linalg.svdvals(values.to(torch.float64))
        share = singular / singular.sum().clamp(min=1e-300)
        share = share[share > 0]
        total += float(torch.exp(-(share * share.log()).sum()))
    return total


def zico(graph: ModelGraph, inputs: Tensor, labels: Tensor | None = None, batches: int = 2) -> float:
    """Sum over weights of the log of their mean inverse coefficient of variation of gradients over batches.

    Raises:
        RequestError: fewer images than batches.
    """
    if len(inputs) < batches or batches < 2:
        raise RequestError(f"ZiCo compares the gradients of at least 2 batches, got {len(inputs)} images")
    module = graph.module(train=True).eval()
    gradients: dict[str, list[Tensor]] = {}
    for part in torch.arange(len(inputs)).chunk(batches):
        module.zero_grad(set_to_none=True)
        logits = module(inputs[part])
        wanted = logits.detach().argmax(1) if labels is None else labels[part]
        F.cross_entropy(logits, wanted).backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and parameter.ndim > 1:
                gradients.setdefault(name, []).append(parameter.grad.abs().flatten().double())
    total = 0.0
    for seen in gradients.values():
        stacked = torch.stack(seen)
        spread = stacked.std(0, unbiased=False)
        alive = spread > 0
        if bool(alive.any()):
            total += math.log(max(float((stacked.mean(0)[alive] / spread[alive]).sum()), 1e-300))
    return total


def jacov(graph: ModelGraph, inputs: Tensor) -> float:
    """Minus the sum over eigenvalues of log(v + k) + 1 / (v + k), of the correlations of input Jacobians."""
    module = graph.module(train=True).eval()
    given = inputs.clone().requires_grad_(True)
    module(given).sum().backward()
    if given.grad is None:
        return -math.inf
    jacobian = given.grad.flatten(1).double()
    values = torch.linalg.eigvalsh(torch.corrcoef(jacobian).nan_to_num())
    small = 1e-5
    return -float((torch.log(values.clamp(min=0) + small) + 1 / (values.clamp(min=0) + small)).sum())


#: Name -> proxy of a graph on images.
PROXIES: Mapping[str, Callable[[ModelGraph, Tensor], float]] = {
    "jacov": jacov,
    "naswot": naswot,
    "near": near,
    "swap": swap,
    "zico": zico,
}


def _activations(graph: ModelGraph, inputs: Tensor) -> Iterator[Tensor]:
    """Values (n, units) of every activation, thinned to `MOST_UNITS`."""
    watched = [node.name for node in graph.nodes if _kind(node.op) in ACTIVATIONS]
    _, kept = evaluate(graph, inputs, watch=watched)
    for name in watched:
        flat = kept[name].flatten(1)
        step = max(1, flat.shape[1] // MOST_UNITS)
        yield flat[:, ::step]


def _codes(graph: ModelGraph, inputs: Tensor) -> Iterator[Tensor]:
    """Signs (n, units) of every activation."""
    for values in _activations(graph, inputs):
        yield values > 0


def _kind(op: str) -> str:
    """An operator's name without the mark of one that works in place."""
    head, dot, overload = op.rpartition(".")
    return f"{head.rstrip('_')}{dot}{overload}"
