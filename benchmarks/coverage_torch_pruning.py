"""Torch-Pruning on the models of the coverage table: half of everything it will prune, compared with zeroing.

Each try runs in a process of its own with a time limit. Two ways of use, both from its own documentation:

- default: the README's quick start. `BasePruner`, `GroupMagnitudeImportance`, ratio 0.5, the layers that make the
  outputs ignored.
- heads: as its examples for transformers do. `num_heads` names the query, key and value layers of every
  attention, and the sizes that the attention modules hold as numbers are set right after pruning; where keys are
  shared or rotated, whole heads are pruned instead of head dimensions, as in its example for language models.

What it kept is read off tags that travel through the pruning as gradients, so that its result can be compared with
the whole model whose dropped inputs read zero, whatever its groups were.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from benchmarks.coverage_models import ARCHITECTURES, PACKAGES

WAYS = ("default", "heads")
#: Largest relative difference (float64) from the zeroed model that counts as equal; wider than for our own.
EQUAL = 1e-9
_QUERIES = ("query", "q_proj", "q", "q_lin", "queries", "q_bias_proj")
_KEYS = ("key", "k_proj", "k", "k_lin", "keys")
_VALUES = ("value", "v_proj", "v", "v_lin", "values")
_FUSED = ("qkv", "c_attn", "qkv_proj", "in_proj")
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "heads")
_WIDTHS = ("attention_head_size", "head_dim", "head_size", "key_value_proj_dim")
_ALL_WIDTHS = ("all_head_size", "inner_dim", "hidden_size_all_heads")


def prune_apart(name: str, *, limit_seconds: float, seed: int) -> dict[str, Any]:
    """Cells of the table for one architecture: outcome and reason of each way of use.

    Outcomes: `works` (equal to the zeroed model), `wrong` (runs, but is another function), `runs` (could not be
    compared), `nothing` (nothing was pruned), `fails` (an exception), `hangs` (not done within the limit), `skipped`
    (not installed).
    """
    source = next(a.source for a in ARCHITECTURES if a.name == name)
    missing = [p for p in ("torch_pruning", PACKAGES[source]) if importlib.util.find_spec(p) is None]
    cells: dict[str, Any] = {}
    for way in WAYS:
        key = "torch_pruning" if way == "default" else f"torch_pruning_{way}"
        if missing:
            cells |= {key: "skipped", f"{key}_reason": f"extra not installed: {missing[0]}"}
            continue
        if way == "heads" and cells.get("torch_pruning") == "works":
            continue  # it needs no help
        found = _try_apart(name, way, limit_seconds, seed)
        if found.get("outcome") == "no attention":
            continue
        cells[key] = found.pop("outcome")
        cells |= {f"{key}_{cell}": value for cell, value in found.items()}
    return cells


def _try_apart(name: str, way: str, limit_seconds: float, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), name, way, str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"outcome": "hangs", "reason": f"not done within {limit_seconds:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"outcome": "fails", "reason": f"process ended with {done.returncode}: {tail[:300]}"}
    return dict(json.loads(lines[-1]))


def prune_half(name: str, way: str, seed: int) -> dict[str, Any]:
    """Outcome and reason of one try, in this process."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    torch.manual_seed(seed)
    model = architecture.module()
    _shake(model, seed)
    model = model.double()
    inputs = tuple(t.double() if t.is_floating_point() else t for t in architecture.example(2))
    with torch.no_grad():
        whole = _tensors(model(*inputs))
    source = copy.deepcopy(model)
    before = sum(p.numel() for p in model.parameters())
    try:
        read = _prune(model, inputs, whole, way)
        if read is None:
            return {"outcome": "no attention"}
        after = sum(p.numel() for p in model.parameters())
        if after == before:
            return {"outcome": "nothing", "reason": "no parameter was pruned"}
        share = {"params_share": round(after / before, 4)}
        with torch.no_grad():
            have = _tensors(model(*inputs))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return {
            "outcome": "fails",
            "reason": f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:250]}",
        }
    if [t.shape for t in have] != [t.shape for t in whole]:
        shapes = f"{[list(t.shape) for t in whole]} became {[list(t.shape) for t in have]}"
        return {"outcome": "wrong", "reason": f"the output changed its shape: {shapes}", **share}
    try:
        lost = _silence(source, read)
        with torch.no_grad():
            want = _tensors(source(*inputs))
    except Exception as error:
        return {"outcome": "runs", "reason": f"not compared: {type(error).__name__}: {error}"[:300], **share}
    gap, moved = _difference(have, want), _difference(have, whole)
    if gap <= EQUAL and moved > EQUAL:
        return {"outcome": "works", "reason": "", "difference": gap, **share}
    if gap <= EQUAL:
        return {"outcome": "nothing", "reason": f"pruning moved the output by only {moved:.1e}", **share}
    norms = sorted({type(m).__name__ for m in lost if "norm" in type(m).__name__.lower()} - _HARMLESS)
    why = f"; it pruned through {', '.join(norms)}" if norms else ""
    return {
        "outcome": "wrong",
        "reason": f"differs from the zeroed model by {gap:.1e}{why}",
        "difference": gap,
        **share,
    }


_HARMLESS = {"BatchNorm1d", "BatchNorm2d", "DetrFrozenBatchNorm2d", "RTDetrFrozenBatchNorm2d"}


def _prune(
    model: nn.Module, inputs: tuple[Tensor, ...], whole: tuple[Tensor, ...], way: str
) -> dict[str, Tensor] | None:
    """Prunes in place; tags of the parameters that are left, by name (None: there is no attention to name)."""
    tp: Any = importlib.import_module("torch_pruning")

    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = torch.arange(parameter.numel(), dtype=parameter.dtype).reshape(parameter.shape)
    attentions = _attentions(model)
    settings: dict[str, Any] = {}
    if way == "heads":
        if not attentions:
            return None
        settings["num_heads"] = {layer: n for found in attentions.values() for layer, n in found.items()}
        if _shares_or_rotates(model):
            settings |= {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    pruner = tp.pruner.BasePruner(
        model,
        inputs if len(inputs) > 1 else inputs[0],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=_makers(model, inputs, whole),
        forward_fn=(lambda m, given: m(*given)) if len(inputs) > 1 else None,
        **settings,
    )
    pruner.step()
    if way == "heads":
        _set_right(attentions, pruner.num_heads)
    return {
        name: parameter.grad.round().long()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _silence(source: nn.Module, read: Mapping[str, Tensor]) -> list[nn.Module]:
    """Zero in the source what the readers read of dropped units; the modules that lost something.

    Readers are the columns of linear and convolution weights. What an attention multiplies (queries with keys) is
    silenced where it is made.
    """
    lost = []
    for name, module in list(source.named_modules()):
        for key, parameter in list(module.named_parameters(recurse=False)):
            tags = read.get(f"{name}.{key}" if name else key)
            if tags is None or tags.numel() == parameter.numel():
                continue
            lost.append(module)
            axis = _reading_axis(module, key)
            zeroed = parameter.detach().clone()
            if axis is not None:
                zeroed.movedim(axis, 0)[~_kept(tags, parameter.shape, axis)] = 0
            leaf = name.rpartition(".")[2]
            if isinstance(module, nn.Linear) and leaf in _QUERIES + _KEYS + _FUSED:
                zeroed[~_kept(tags, parameter.shape, 0)] = 0
            setattr(module, key, nn.Parameter(zeroed))  # a tensor of its own, should it be shared
    return lost


def _reading_axis(module: nn.Module, key: str) -> int | None:
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return (1 if isinstance(module, nn.Linear) else 0) if key == "weight" else None
    if isinstance(module, nn.modules.conv._ConvNd) and key == "weight":
        depthwise = module.groups == module.in_channels and module.groups > 1
        return None if depthwise else (0 if module.transposed else 1)
    if isinstance(module, nn.RNNBase) and key.startswith("weight"):
        return 1
    if isinstance(module, nn.MultiheadAttention) and key.endswith("weight"):
        return 1
    return None


def _kept(tags: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Which positions of an axis of the whole tensor are still there, shape (shape[axis],)."""
    stride = 1
    for size in shape[axis + 1 :]:
        stride *= size
    kept = torch.zeros(shape[axis], dtype=torch.bool)
    kept[((tags // stride) % shape[axis]).unique()] = True
    return kept


def _makers(model: nn.Module, inputs: tuple[Tensor, ...], whole: tuple[Tensor, ...]) -> list[nn.Module]:
    """The last layer that ran with the width of each output: what a user would put into `ignored_layers`."""
    ran: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            convolution = isinstance(module, nn.modules.conv._ConvNd)
            ran.append((module, out.shape[1] if convolution else out.shape[-1]))

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    found = []
    for output in whole:
        widths = {output.shape[-1], output.shape[1]}
        found += [module for module, width in ran if width in widths][-1:]
    return found


def _attentions(model: nn.Module) -> dict[nn.Module, dict[nn.Linear, int]]:
    """Attention module -> its query, key and value layers with their numbers of heads."""
    shared = _config(model, "num_key_value_heads")
    found: dict[nn.Module, dict[nn.Linear, int]] = {}
    for module in model.modules():
        heads = next((v for k in _HEADS if isinstance(v := getattr(module, k, None), int)), None)
        heads = heads or _config(getattr(module, "config", None), "num_attention_heads")
        if not heads:
            continue
        layers: dict[nn.Linear, int] = {}
        for name, child in module.named_children():
            if not isinstance(child, nn.Linear):
                continue
            if name in _QUERIES + _FUSED:
                layers[child] = heads
            elif name in _KEYS + _VALUES:
                layers[child] = shared or heads
        if layers:
            found[module] = layers
    return found


def _set_right(
    attentions: Mapping[nn.Module, Mapping[nn.Linear, int]], heads: Mapping[nn.Module, int]
) -> None:
    """The numbers that attention modules hold, after pruning."""
    for module, layers in attentions.items():
        first, *rest = layers
        width = int(first.out_features) // (3 if _leaf(module, first) in _FUSED else 1)
        n_heads = heads[first]
        values = {
            **dict.fromkeys(_HEADS, n_heads),
            **dict.fromkeys(_WIDTHS, width // n_heads),
            **dict.fromkeys(_ALL_WIDTHS, width),
        }
        if rest:
            values["num_key_value_groups"] = n_heads // heads[rest[0]]
        for name, value in values.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)


def _leaf(module: nn.Module, child: nn.Module) -> str:
    return next(name for name, found in module.named_children() if found is child)


def _shares_or_rotates(model: nn.Module) -> bool:
    names = [type(m).__name__ for m in model.modules()]
    return bool(_config(model, "num_key_value_heads")) or any("RotaryEmbedding" in name for name in names)


def _config(model: Any, name: str) -> int | None:
    for holder in (model, getattr(model, "model", None)):
        value = getattr(getattr(holder, "config", holder), name, None)
        if isinstance(value, int):
            return value
    return None


def _shake(model: nn.Module, seed: int) -> None:
    """Random weights as they are, but norms, biases and statistics moved away from zero and one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim < 2 else 0.5 * float(parameter.std() or 0.1)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_var", "running_mean")):
                buffer.add_(torch.rand(buffer.shape, generator=generator), alpha=0.2)


def _tensors(out: Any) -> tuple[Tensor, ...]:
    return tuple(out) if isinstance(out, list | tuple) else (out,)


def _difference(one: tuple[Tensor, ...], two: tuple[Tensor, ...]) -> float:
    gaps = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(one, two, strict=True)
    ]
    return max(gap if gap == gap else float("inf") for gap in gaps)


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer = prune_half(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    if answer.get("difference") == float("inf"):
        answer["difference"] = None
    print(json.dumps(answer))
