"""The long training loop: resumes after any interruption to the same weights, and stops at numbers that are none."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sarto.errors import RequestError, StoreError
from sarto.training.holding import held

#: Checkpoints that are kept; the last one may be the one that was being written when the machine stopped.
KEPT = 2
_OPTIMISER = "optimiser."


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        steps: updates.
        rates: name of a part of the model -> its largest step size; AdamW.
        decays: name of a part -> its weight decay; vectors (biases, norms) have none.
        warmup: share of the steps in which step sizes grow; then they fall as a cosine.
        clip: largest norm of the gradient of one step.
        save_every: steps between checkpoints.
    """

    steps: int
    rates: Mapping[str, float]
    decays: Mapping[str, float]
    warmup: float = 0.02
    clip: float = 1.0
    save_every: int = 500


@dataclass(frozen=True)
class LoopResult:
    """How a training ended.

    Attributes:
        steps: updates that the weights have seen.
        stopped: None, or why it ended early; the weights are then those of the last good checkpoint.
        resumed_from: step from which it went on; 0 for a fresh start.
        damaged: newer checkpoints that could not be read, and why.
    """

    steps: int
    stopped: str | None
    resumed_from: int
    damaged: tuple[str, ...] = ()


def train_loop(
    parts: Mapping[str, nn.Module],
    loss_of: Callable[[int], Tensor],
    settings: LoopSettings,
    *,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    told: Callable[[int, float], None] | None = None,
    first: bool = True,
) -> LoopResult:
    """Train modules in place: AdamW, warm-up and cosine, clipped gradients, checkpoints.

    Everything that is drawn must be drawn from the number of the step alone; then a resumed training takes the same
    steps as one that was never interrupted, bit by bit on a processor.

    Of several processes that train together (torch.distributed), each draws its own batches, gradients are averaged,
    and one writes checkpoints.

    Args:
        parts: name -> module; their parameters are trained, their buffers travel in the checkpoints.
        loss_of: step -> the loss of its batch, under the modules as they are.
        folder: where checkpoints lie; None keeps none.
        identity: what the training is of (data, seeds, settings); a checkpoint of another one is refused.
        told: called after every step, and its checkpoint, with the number of steps done and the loss.
        first: whether this process writes checkpoints (of several that train together, one does).

    Returns:
        The loss or a gradient that is no number ends the training at the last good checkpoint, and the result says so.

    Raises:
        RequestError: a number of the settings is out of range.
        StoreError: the folder holds checkpoints of another training or none that can be read, or another process
            trains there.
    """
    _check(settings, parts)
    identity_hash = _hash({"settings": asdict(settings), **(identity or {})})
    with ExitStack() as stack:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if first:
                stack.enter_context(held(folder))
        return _trained(parts, loss_of, settings, folder, identity_hash, told, first)


def _trained(
    parts: Mapping[str, nn.Module],
    loss_of: Callable[[int], Tensor],
    settings: LoopSettings,
    folder: Path | None,
    identity_hash: str,
    told: Callable[[int, float], None] | None,
    first: bool,
) -> LoopResult:
    optimiser = _optimiser(parts, settings)
    begun, damaged = _resume(folder, parts, optimiser, identity_hash) if folder is not None else (0, ())
    schedule = [rate_at(step, settings) for step in range(settings.steps)]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    # The state before the first step is a checkpoint too: there is always something good to return to.
    if folder is not None and not begun:
        _save(folder, parts, optimiser, 0, identity_hash, first)
    for step in range(begun, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * schedule[step]
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parts.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            back = _resume(folder, parts, optimiser, identity_hash)[0] if folder is not None else step
            what = (
                f"the loss of step {step + 1} is {value}"
                if not math.isfinite(value)
                else (f"the gradient of step {step + 1} is no number")
            )
            return LoopResult(
                back,
                f"{what}; the weights are those of step {back}. Lower the step size, or look for bad inputs",
                begun,
                damaged,
            )
        optimiser.step()
        # What is told may fail; the step is kept first, or every new start would end there.
        if folder is not None and ((step + 1) % settings.save_every == 0 or step + 1 == settings.steps):
            _save(folder, parts, optimiser, step + 1, identity_hash, first)
        if told is not None:
            told(step + 1, value)
    return LoopResult(settings.steps, None, begun, damaged)


def rate_at(step: int, settings: LoopSettings) -> float:
    """Share of the largest step size at a step: a linear rise, then half a cosine down to zero."""
    rise = max(1, round(settings.warmup * settings.steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, settings.steps - rise)
    return 0.5 * (1 + math.cos(math.pi * done))


def _check(settings: LoopSettings, parts: Mapping[str, nn.Module]) -> None:
    problems = [
        f"{name} must be at least 1, got {value}"
        for name, value in (("steps", settings.steps), ("save_every", settings.save_every))
        if value < 1
    ]
    problems += [
        f"the step size of {name} must be above 0, got {rate}"
        for name, rate in settings.rates.items()
        if not (rate > 0 and math.isfinite(rate))
    ]
    problems += [f"there is no step size for {name}" for name in parts if name not in settings.rates]
    if not 0 <= settings.warmup <= 1:
        problems.append(f"warmup is a share of the steps in [0, 1], got {settings.warmup}")
    if not any(p.requires_grad for part in parts.values() for p in part.parameters()):
        problems.append("there is nothing to train: no parameter asks for a gradient")
    if problems:
        raise RequestError(f"training can't start: {problems[0]}", problems=problems)


def _optimiser(parts: Mapping[str, nn.Module], settings: LoopSettings) -> torch.optim.AdamW:
    groups = []
    for name, part in parts.items():
        learnt = [p for p in part.parameters() if p.requires_grad]
        for decay, chosen in (
            (settings.decays.get(name, 0.0), [p for p in learnt if p.ndim > 1]),
            (0.0, [p for p in learnt if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "peak": settings.rates[name]})
    # One pass over all parameters; the steps are the same ones.
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def _named(parts: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a checkpoint holds: parameters and buffers, and the optimiser's moments by place."""
    tensors = {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }
    places = [p for group in optimiser.param_groups for p in group["params"]]
    for place, parameter in enumerate(places):
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{_OPTIMISER}{place}.{key}"] = value
    return {name: value.detach().contiguous().clone() for name, value in tensors.items()}


def _save(
    folder: Path,
    parts: Mapping[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    step: int,
    identity: str,
    first: bool,
) -> None:
    if not first:
        return  # of several processes that train together one writes
    path = folder / f"step-{step:09d}.safetensors"
    temporary = path.with_suffix(".new")
    save_file(_named(parts, optimiser), temporary, metadata={"step": str(step), "identity": identity})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def _resume(
    folder: Path, parts: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer, identity: str
) -> tuple[int, tuple[str, ...]]:
    """Load the newest checkpoint that can be read.

    Returns:
        The steps that it has seen, 0 where there is none; and newer ones that can't be read, with the reason.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            about, tensors = _read(path)
        except (OSError, SafetensorError) as error:
            damaged.append(f"{path.name} can't be read ({error})")
            continue
        step = int(about.get("step", -1))
        if about.get("identity") == identity:
            _load(parts, optimiser, tensors)
            return step, tuple(damaged)
        if step == 0 and not damaged:
            # Another training's state before its first step: nothing was learnt that could be lost.
            return 0, ()
        raise StoreError(
            f"{folder} holds checkpoints of another training (other data, seeds or settings): give another folder, "
            "or delete it to start again",
            where=str(folder),
        )
    if damaged:
        raise StoreError(
            f"no checkpoint in {folder} can be read: {'; '.join(damaged)}. Delete the folder to start again",
            where=str(folder),
        )
    return 0, ()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        return dict(file.metadata() or {}), tensors


def _load(
    parts: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    for name, part in parts.items():
        start = f"{name}."
        part.load_state_dict(
            {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        )
    places = [p for group in optimiser.param_groups for p in group["params"]]
    optimiser.state.clear()
    for key, value in tensors.items():
        if key.startswith(_OPTIMISER):
            place, _, what = key.removeprefix(_OPTIMISER).partition(".")
            parameter = places[int(place)]
            optimiser.state[parameter][what] = value.to(parameter.device)


def _hash(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def draws(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A generator that depends on the seed, the step and the stream alone."""
    digest = hashlib.sha256(f"{seed}:{step}:{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


def average_gradients(modules: Iterable[nn.Module]) -> None:
    """Gradients averaged over all processes that train together; does nothing where there is one.

    For torch.distributed, after `backward`; every process must have the same parameters.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    count = torch.distributed.get_world_size()
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= count
