"""When limits begin to come down: by hand, in a training, and after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sarto import zoo
from sarto.engines.factory import training
from sarto.engines.factory.ramping import Ramp, answered, ramp
from sarto.engines.factory.supernet import placed
from sarto.engines.factory.training import Trained, draw_limits, train_supernet
from sarto.errors import RequestError
from sarto.graph import capture
from sarto.types import AssemblerSettings, JointSettings, TaskSpace
from tests.unit.factory_assets import SPACE, Odd

SETTINGS = JointSettings(steps=100, open_from=0.1, open_until=0.5, ramp_until=0.7, open_accuracy=0.3)


def test_limits_come_down_in_as_many_steps_wherever_they_begin() -> None:
    fixed = [ramp(SETTINGS, share) for share in (0.0, 0.49, 0.5, 0.6, 0.7, 1.0)]
    assert fixed == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert [ramp(SETTINGS, share, 0.2) for share in (0.1, 0.2, 0.3, 0.4)] == pytest.approx([0, 0, 0.5, 1])
    assert ramp(SETTINGS, 0.6, 0.9) == pytest.approx(0.5)  # at the latest


def begins(values: list[float], *, by_loss: bool = False, **changes: Any) -> int:
    """The step from which limits come down when a training sees these values."""
    settings = SETTINGS.replace(**changes)
    found = Ramp(settings, by_loss=by_loss)
    for step, value in enumerate(values):
        if found.at(step) > 0:
            return step - 1
        found.see(step, value)
    return len(values)


def test_they_begin_when_tasks_begin_to_be_learnt() -> None:
    assert begins([1.0] * 100) == 10, "not before open_from"
    assert begins([0.0] * 100) == 50, "at the latest at open_until"
    assert begins([1.0] * 100, open_accuracy=None) == 50
    # By hand: a mean that forgets 2 % a step, of 0 for 20 steps and 1 after them.
    step = next(n for n in range(1, 80) if (1 - 0.98**n) / (1 - 0.98 ** (20 + n)) >= 0.3)
    assert begins([0.0] * 20 + [1.0] * 80) == 20 + step < 50
    # Of losses: three tenths less than at open_from; what was gone before does not count.
    assert begins([100.0] + [1.0] * 99, by_loss=True, open_from=0.0) < 5
    assert begins([1.0] * 100, by_loss=True) == 50
    assert 10 < begins([1.0] * 12 + [0.1] * 88, by_loss=True) < 50


def test_answers_count_beyond_guessing() -> None:
    outputs = torch.tensor([[2.0, 1, 9], [0, 1, 9], [1, 2, 3], [3, 2, 1]])
    allowed = torch.tensor([[True, True, False], [True, True, False], [True, True, True], [True, True, True]])
    right, every = answered(outputs, torch.tensor([0, 0, 2, 1]), allowed).tolist()
    # Right are the first and the third; by chance half of two and a third of two.
    assert right == pytest.approx(2 - 1 - 2 / 3) and every == pytest.approx(4 - 1 - 2 / 3)


def trained(monkeypatch: pytest.MonkeyPatch, seen: float, opened: list[float], **more: Any) -> Trained:
    """A training of eight steps that is told that its answers are as good as this."""
    torch.manual_seed(0)
    net = zoo.resnet(2, 1, (1,), 4, False, "cifar").eval()
    graph = capture(net, torch.rand(2, 1, 12, 12), prove=False)

    def drawn(settings: JointSettings, share: float, *rest: Any) -> torch.Tensor:
        opened.append(share)
        return draw_limits(settings, share, *rest)

    monkeypatch.setattr(training, "draw_limits", drawn)
    monkeypatch.setattr(training, "answered", lambda *given: torch.tensor([seen, 1.0]))
    joint = JointSettings(
        steps=8, batch=6, save_every=4, lr=0.01, open_from=0.0, open_until=0.5, ramp_until=1.0
    )
    shape = AssemblerSettings(hidden=8, gaters=2)
    return train_supernet(
        graph, placed(graph), TaskSpace.parse(SPACE), Odd(""), assembler=shape, joint=joint, **more
    )


def test_a_training_that_learns_at_once_comes_down_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[float] = []
    early: list[float] = []
    trained(monkeypatch, 0.0, late)
    trained(monkeypatch, 1.0, early)
    assert late == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.5, 0.75])
    assert early == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_an_interrupted_training_knows_when_its_limits_began_to_come_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    straight = trained(monkeypatch, 1.0, [])

    def stop(step: int, loss: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(monkeypatch, 1.0, [], folder=tmp_path, told=stop)
    assert float(load_file(tmp_path / "step-000000004.safetensors")["ramp.begun"]) == 0.125
    # From here on it is told that nothing is learnt; what it knew before counts.
    again = trained(monkeypatch, 0.0, [], folder=tmp_path)
    assert again.result.resumed_from == 4
    for name, tensor in straight.supernet.graph.tensors.items():
        assert torch.equal(tensor, again.supernet.graph.tensors[name]), name


def test_a_ramp_without_steps_is_refused_with_all_that_is_wrong() -> None:
    with pytest.raises(RequestError) as caught:
        JointSettings(open_from=0.7, open_until=0.6, ramp_until=0.6)
    assert len(caught.value.problems) == 2
    with pytest.raises(RequestError, match=r"ramp_until: 0\.3 leaves no steps after open_until, 0\.3"):
        JointSettings.parse({"ramp_until": 0.3})
    assert JointSettings(open_from=0.0, open_until=0.0, ramp_until=0.0).ramp_until == 0
