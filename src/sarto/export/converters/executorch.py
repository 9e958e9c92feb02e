"""ExecuTorch with XNNPACK from an exported program; int8 by XNNPACK's quantiser of torchao's flow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def convert(arguments: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Write `target` from the exported program `source`; the arrays are calibration samples."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    program = torch.export.load(str(arguments["source"]))
    if arguments["precision"] == "int8":
        program = _quantized(program, arrays, arguments["max_batch"])
    constants: dict[str, Any] = {"sarto_max_batch": arguments["max_batch"]} if arguments["max_batch"] else {}
    if arguments["metadata"]:
        constants["sarto_metadata"] = json.dumps(arguments["metadata"])
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods=constants or None
    )
    # Inputs stay where the caller has them: the file does not reserve memory for the largest batch.
    planning = MemoryPlanningPass(alloc_graph_input=False)
    made = lowered.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    Path(arguments["target"]).write_bytes(made.buffer)
    return {}


def _quantized(program: Any, arrays: Sequence[np.ndarray], max_batch: int | None) -> Any:
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    tensors = [torch.from_numpy(array) for array in arrays]
    size = min(8, max_batch) if max_batch else program.example_inputs[0][0].shape[0]
    for start in range(0, len(tensors[0]) // size * size, size):
        prepared(*[tensor[start : start + size] for tensor in tensors])
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)} if max_batch else {}
    return torch.export.export(
        convert_pt2e(prepared), program.example_inputs[0], dynamic_shapes=tuple(dynamic for _ in tensors)
    )
