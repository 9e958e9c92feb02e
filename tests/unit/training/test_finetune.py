"""The training loop: it learns, repeats itself, leaves its input alone, and survives bad steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sarto.errors import RequestError, ShapeError
from sarto.training import finetune

LABELS = torch.arange(24) % 3


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def images() -> torch.Tensor:
    noise = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return noise + torch.eye(3)[LABELS].reshape(24, 3, 1, 1)


def test_it_learns_and_leaves_the_given_module_alone() -> None:
    start = model()
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    told: list[tuple[int, int, float]] = []
    result = finetune(
        start, images(), LABELS, steps=40, lr=1e-2, seed=0, progress=lambda *state: told.append(state)
    )
    assert result.stopped is None and len(result.history) == 40
    assert result.history[-1] < 0.5 * result.history[0]
    assert told == [(step + 1, 40, loss) for step, loss in enumerate(result.history)]
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert (result.module(images()).argmax(1) == LABELS).float().mean() > 0.8


def test_batch_norm_keeps_its_statistics() -> None:
    start = model()
    tuned = finetune(start, images(), LABELS, steps=3, lr=1e-2, seed=0).module
    assert not tuned.training
    assert torch.equal(tuned[1].running_mean, start[1].running_mean)
    assert not torch.equal(tuned[1].weight, start[1].weight)


def test_same_seed_same_weights() -> None:
    def run(seed: int) -> torch.Tensor:
        options = {"steps": 5, "lr": 1e-2, "batch_size": 8, "flip": True, "crop": 2}
        return torch.cat(
            [
                p.flatten()
                for p in finetune(model(), images(), LABELS, seed=seed, **options).module.parameters()
            ]
        )

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_first_step_is_that_of_adam_on_balanced_cross_entropy() -> None:
    linear = nn.Linear(4, 2).double()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    tuned = finetune(linear, x, labels, steps=1, lr=0.1, seed=0)
    losses = nn.functional.cross_entropy(linear(x), labels, reduction="none")
    expected = (losses[:4].mean() + losses[4:].mean()) / 2
    assert tuned.history[0] == pytest.approx(expected.item())
    slope = torch.autograd.grad(expected, linear.weight)[0]
    torch.testing.assert_close(tuned.module.weight, linear.weight - 0.1 * slope.sign(), rtol=0, atol=1e-5)


def test_bfloat16_steps_end_near_float32_ones() -> None:
    plain = finetune(model(), images(), LABELS, steps=30, lr=1e-2, seed=0)
    fast = finetune(model(), images(), LABELS, steps=30, lr=1e-2, seed=0, autocast=True)
    assert fast.history[0] == pytest.approx(plain.history[0], rel=0.02)
    assert fast.history[-1] < 0.6 * fast.history[0]
    assert all(parameter.dtype == torch.float32 for parameter in fast.module.parameters())


def test_only_chosen_parameters_change_and_flags_stay() -> None:
    start = model()
    start[0].bias.requires_grad_(False)
    tuned = finetune(
        start, images(), LABELS, steps=3, lr=1e-2, seed=0, trainable=lambda name: name.startswith("5.")
    ).module
    changed = {
        name
        for (name, a), b in zip(start.named_parameters(), tuned.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"5.weight", "5.bias"}
    assert {n: p.requires_grad for n, p in tuned.named_parameters()} == {
        n: p.requires_grad for n, p in start.named_parameters()
    }


class Explosive(nn.Module):
    """Logits that turn to NaN once the weight has moved far enough."""

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.reach = reach

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = x @ self.weight.T
        return logits * (torch.nan if float(self.weight.detach().abs().max()) > self.reach else 1.0)


def test_a_loss_that_is_not_a_number_ends_with_the_last_good_weights() -> None:
    x, labels = torch.eye(2).repeat(5, 1), torch.arange(2).repeat(5)
    result = finetune(Explosive(0.35), x, labels, steps=20, lr=0.1, seed=0)
    assert result.stopped is not None and "the loss was nan after 4 of 20 steps" in result.stopped
    assert len(result.history) == 4
    assert bool(torch.isfinite(result.module(x)).all())
    at_the_end = finetune(Explosive(0.15), x, labels, steps=2, lr=0.1, seed=0)
    assert at_the_end.stopped is not None and "after 2 of 2 steps" in at_the_end.stopped
    assert bool(torch.isfinite(at_the_end.module(x)).all())


def test_a_gradient_that_is_not_a_number_ends_before_the_step() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.weight.T).abs().sqrt()

    result = finetune(Root(), torch.eye(2), torch.arange(2), steps=5, lr=0.1, seed=0)
    assert result.stopped is not None and "a gradient was not finite after 0 of 5 steps" in result.stopped
    assert torch.equal(result.module.weight, torch.zeros(2, 2))


def test_augmentation_moves_pixels_without_inventing_any() -> None:
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.detach())
            return self.weight * x.flatten(1)[:, :2]

    x = torch.arange(2 * 1 * 4 * 4, dtype=torch.float32).reshape(2, 1, 4, 4)
    finetune(Spy(), x, torch.tensor([0, 1]), steps=30, lr=1e-9, seed=0, flip=True)
    flips = [torch.equal(batch[0], x[0].flip(2)) for batch in seen[1:]]
    assert 5 < sum(flips) < 25
    assert all(torch.equal(batch[0], x[0]) or flipped for batch, flipped in zip(seen[1:], flips, strict=True))
    seen.clear()
    finetune(Spy(), x, torch.tensor([0, 1]), steps=30, lr=1e-9, seed=0, crop=1)
    assert all(set(batch[0].flatten().tolist()) <= set(x[0].flatten().tolist()) for batch in seen)
    assert any(torch.equal(batch[0, 0, :3, :3], x[0, 0, 1:, 1:]) for batch in seen[1:])


def test_no_steps_gives_an_equal_copy_even_without_gradients() -> None:
    start = model()
    with torch.no_grad():
        result = finetune(start, images(), LABELS, steps=0, lr=1e-2, seed=0)
    assert result.history == () and result.module is not start
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), result.module.parameters(), strict=True))


def test_wrong_arguments_are_refused() -> None:
    def tune(**changes: object) -> None:
        options = {"steps": 2, "lr": 1e-2, "seed": 0, **changes}
        finetune(model(), options.pop("inputs", images()), options.pop("labels", LABELS), **options)

    with pytest.raises(RequestError, match=r"3 problems: steps must be >= 0.*batch_size.*crop must be >= 0"):
        tune(steps=-1, batch_size=0, crop=8)
    with pytest.raises(RequestError, match="lr must be finite and > 0"):
        tune(lr=0)
    with pytest.raises(RequestError, match=r"labels must lie in 0\.\.2"):
        tune(labels=LABELS + 1)
    with pytest.raises(RequestError, match="nothing to train"):
        tune(trainable=lambda name: False)
    with pytest.raises(RequestError, match="inputs have non-finite"):
        tune(inputs=images() * torch.nan)
    with pytest.raises(ShapeError, match="one label for each"):
        tune(labels=LABELS[:5])
    with pytest.raises(ShapeError, match="flip and crop need images"):
        finetune(
            nn.Linear(4, 2),
            torch.ones(3, 4),
            torch.zeros(3, dtype=torch.int64),
            steps=1,
            lr=1,
            seed=0,
            flip=True,
        )
    with pytest.raises(ShapeError, match=r"must give logits \(1, n_classes\)"):
        finetune(nn.Conv2d(3, 2, 1), images(), LABELS, steps=1, lr=1, seed=0)
