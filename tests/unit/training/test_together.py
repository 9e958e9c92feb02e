"""Two processes that train as one: the steps of one process whose loss is the mean over both of their batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sarto.training import LoopSettings, draws, train_loop

SETTINGS = LoopSettings(steps=6, rates={"net": 0.05}, decays={}, save_every=3)
#: What each of the two processes runs.
CODE = """
import json, sys, torch
from tests.unit.training import test_together as here
rank, place = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=2)
from sarto.engines.factory.training import _share_of_all
shared = _share_of_all(torch.tensor([3.0, 4.0]) if rank else torch.tensor([1.0, 12.0]))
print(json.dumps({"weights": here.trained([rank]), "shared": shared}))
"""


def trained(ranks: list[int]) -> list[float]:
    """The weights of a small net after a training on the batches of some processes."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()

    def loss_of(step: int) -> torch.Tensor:
        batches = [torch.randn(5, 4, generator=draws(0, step, stream=rank)).double() for rank in ranks]
        each = [(net(batch)[:, 0] - batch.sum(1)).square().mean() for batch in batches]
        return torch.stack(each).mean()

    train_loop({"net": net}, loss_of, SETTINGS)
    return [value for parameter in net.parameters() for value in parameter.detach().flatten().tolist()]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_both_batches(tmp_path: Path) -> None:
    place = tmp_path / "meeting"
    root = Path(__file__).parents[3]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]),
        "OMP_NUM_THREADS": "1",
    }
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(rank), str(place)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    first, second = (json.loads(process.communicate(timeout=300)[0]) for process in pair)
    assert first["weights"] == second["weights"], "bit for bit"
    together, alone = torch.tensor(trained([0, 1])), torch.tensor(trained([0]))
    assert torch.allclose(torch.tensor(first["weights"]), together, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(alone, together, atol=1e-3)
    # How well samples were answered is that of all of them.
    assert first["shared"] == second["shared"] == 4 / 16
