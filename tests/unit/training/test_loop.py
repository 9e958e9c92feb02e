"""The long loop: the same weights after any interruption, and nothing lost to numbers that are none."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sarto.errors import RequestError, StoreError
from sarto.training import LoopSettings, draws, rate_at, train_loop
from sarto.training.holding import LOCK, held
from sarto.training.loop import checkpoints

SETTINGS = LoopSettings(steps=12, rates={"net": 1e-2}, decays={"net": 1e-2}, save_every=5)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    # No bias before the norm: its gradient is rounding alone, which Adam scales up.
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def fit(net: nn.Module, step: int) -> Tensor:
    x = torch.randn(16, 4, generator=draws(0, step))
    return nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long())


def run(folder: Path | None, until: int | None = None, settings: LoopSettings = SETTINGS) -> nn.Module:
    """Train; `until` breaks off in the middle of that step, as an interruption does."""
    net = small()

    def loss_of(step: int) -> Tensor:
        if step == until:
            raise KeyboardInterrupt
        return fit(net, step)

    with contextlib.suppress(KeyboardInterrupt):
        train_loop({"net": net}, loss_of, settings, folder=folder)
    return net


def test_resumes_to_the_same_weights(tmp_path: Path) -> None:
    straight = run(None).state_dict()
    run(tmp_path, until=8)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-000000000.safetensors",
        "step-000000005.safetensors",
    ]
    again = run(tmp_path).state_dict()
    assert all(torch.equal(straight[name], again[name]) for name in straight)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = run(tmp_path).state_dict()
    net = small(seed=5)
    asked: list[int] = []

    def loss_of(step: int) -> Tensor:
        asked.append(step)
        return fit(net, step)

    result = train_loop({"net": net}, loss_of, SETTINGS, folder=tmp_path)
    assert asked == [] and result.resumed_from == 12
    assert all(torch.equal(first[name], value) for name, value in net.state_dict().items())


def test_loss_that_is_no_number_returns_to_the_last_checkpoint(tmp_path: Path) -> None:
    net = small()

    def loss_of(step: int) -> Tensor:
        return fit(net, step) * (math.nan if step == 7 else 1.0)

    result = train_loop({"net": net}, loss_of, SETTINGS, folder=tmp_path)
    assert result.steps == 5
    assert result.stopped is not None and "the loss of step 8 is nan" in result.stopped
    until_five = small()
    for step in range(5):
        # The same five steps by hand.
        if step == 0:
            optimiser = torch.optim.AdamW(
                [
                    {"params": [p for p in until_five.parameters() if p.ndim > 1], "weight_decay": 1e-2},
                    {"params": [p for p in until_five.parameters() if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=0.0,
            )
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * rate_at(step, SETTINGS)
        loss = fit(until_five, step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(until_five.parameters(), 1.0)
        optimiser.step()
    for name, value in until_five.state_dict().items():
        assert torch.allclose(net.state_dict()[name], value, atol=1e-7), name


def test_another_training_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    other = LoopSettings(steps=13, rates={"net": 1e-2}, decays={}, save_every=5)
    with pytest.raises(StoreError, match="another training"):
        run(tmp_path, settings=other)


def test_a_truncated_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    straight = run(tmp_path).state_dict()
    new = checkpoints(tmp_path)[-1]
    new.write_bytes(new.read_bytes()[:-20])
    net = small(seed=5)
    result = train_loop({"net": net}, lambda step: fit(net, step), SETTINGS, folder=tmp_path)
    assert (result.resumed_from, result.steps) == (10, 12)
    assert len(result.damaged) == 1 and "step-000000012.safetensors can't be read" in result.damaged[0]
    assert all(torch.equal(straight[name], value) for name, value in net.state_dict().items())
    for path in checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(StoreError, match=r"no checkpoint in .* can be read: step-000000012.*step-000000010"):
        run(tmp_path)


def test_what_is_told_may_fail_and_the_next_start_goes_on(tmp_path: Path) -> None:
    def told(step: int, loss: float) -> None:
        if step == 5:
            raise ValueError("a picture that can't be drawn")

    net = small()
    with pytest.raises(ValueError, match="a picture"):
        train_loop({"net": net}, lambda step: fit(net, step), SETTINGS, folder=tmp_path, told=told)
    result = train_loop({"net": net}, lambda step: fit(net, step), SETTINGS, folder=tmp_path, told=told)
    assert (result.resumed_from, result.steps) == (5, 12)


def test_a_training_that_never_took_a_step_gives_its_folder_up(tmp_path: Path) -> None:
    run(tmp_path, until=0)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000000.safetensors"]
    other = LoopSettings(steps=13, rates={"net": 1e-2}, decays={}, save_every=5)
    run(tmp_path, settings=other)
    assert checkpoints(tmp_path)[-1].name == "step-000000013.safetensors"


def test_bad_settings_are_all_named() -> None:
    wrong = LoopSettings(steps=0, rates={"net": -1.0}, decays={}, warmup=2.0, save_every=0)
    with pytest.raises(RequestError) as caught:
        train_loop({"net": small(), "head": nn.Linear(1, 1)}, lambda step: torch.zeros(()), wrong)
    said = " ".join(caught.value.problems)
    for word in ("steps", "save_every", "step size of net", "no step size for head", "warmup"):
        assert word in said


def test_rates_rise_and_fall() -> None:
    settings = LoopSettings(steps=100, rates={}, decays={}, warmup=0.1)
    rates = [rate_at(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.01


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from sarto.training import train_loop
from test_loop import SETTINGS, fit, small
net = small()
def loss_of(step):
    if step == 8 and {slow}:
        print("there", flush=True)
        time.sleep(60)
    return fit(net, step)
train_loop({{"net": net}}, loss_of, SETTINGS, folder=Path({folder!r}))
torch.save(net.state_dict(), {out!r})
"""


@pytest.mark.slow
def test_survives_kill(tmp_path: Path) -> None:
    here, out = str(Path(__file__).parent), str(tmp_path / "done.pt")
    text = {"here": here, "folder": str(tmp_path / "checkpoints"), "out": out}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(slow=True, **text)],
        stdout=subprocess.PIPE,
        env=os.environ.copy(),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"there\n"
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    child.stdout.close()
    time.sleep(0.1)
    subprocess.run([sys.executable, "-c", KILLED.format(slow=False, **text)], check=True, timeout=120)
    torch.set_num_threads(1)
    straight = run(None).state_dict()
    found = torch.load(out, weights_only=True)
    assert all(torch.equal(straight[name], found[name]) for name in straight)


def test_two_trainings_in_one_folder_are_refused_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    # Nothing but the standard library: what another process does to the file.
    held_open = f"""
import fcntl, json, os, platform, time
with open({str(tmp_path / LOCK)!r}, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(json.dumps({{"process": os.getpid(), "machine": platform.node()}}))
    file.flush()
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", held_open], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with pytest.raises(StoreError, match=rf"process {other.pid} on .* trains in .* already: wait"):
                run(tmp_path)
            assert checkpoints(tmp_path) == []
        finally:
            other.send_signal(signal.SIGKILL)
    assert str(other.pid) in (tmp_path / LOCK).read_text(), "what the killed process left"
    again, straight = run(tmp_path).state_dict(), run(None).state_dict()
    assert all(torch.equal(straight[name], again[name]) for name in straight)
    assert (tmp_path / LOCK).read_text() == ""


def test_an_interrupted_training_gives_its_folder_back(tmp_path: Path) -> None:
    run(tmp_path, until=3)
    with held(tmp_path), pytest.raises(StoreError, match=f"process {os.getpid()} on"), held(tmp_path):
        pass


def test_without_locks_of_the_file_system_the_named_process_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with held(tmp_path):
        left = (tmp_path / LOCK).read_text()
        with pytest.raises(StoreError, match=f"process {os.getpid()} on"), held(tmp_path):
            pass
        assert (tmp_path / LOCK).read_text() == left
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / LOCK).write_text(left.replace(str(os.getpid()), str(gone.pid)))
    with held(tmp_path):
        assert (tmp_path / LOCK).read_text() == left
