"""LiteRT from an exported program; float16 and int8 by the quantiser of AI Edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def convert(arguments: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Write `target` from the exported program `source`; the arrays are calibration samples."""
    import litert_torch
    import torch

    program = torch.export.load(str(arguments["source"]))
    example = program.example_inputs[0]
    target = Path(arguments["target"])
    model = litert_torch.convert(program.module(), example)
    if arguments["precision"] == "float32":
        model.export(str(target))
        return {}
    plain = target.with_suffix(".plain.tflite")
    model.export(str(plain))
    made = _halved(plain) if arguments["precision"] == "float16" else _quantized(plain, example, arrays)
    made.export_model(str(target), overwrite=True)
    plain.unlink()
    return {}


def _halved(path: Path) -> Any:
    """Weights in half precision, which XNNPACK widens, or computes with, as the processor can."""
    from ai_edge_quantizer import qtyping, quantizer

    made = quantizer.Quantizer(str(path))
    made.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=16, dtype=qtyping.TensorDataType.FLOAT
            ),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key="float_casting",
    )
    return made.quantize()


def _quantized(path: Path, example: Sequence[Any], arrays: Sequence[np.ndarray]) -> Any:
    """Weights per channel and activations in int8; what goes in and comes out stays as it is."""
    from ai_edge_quantizer import quantizer, recipe

    rules = recipe.static_wi8_ai8()
    rules += [
        {"regex": ".*", "operation": name, "algorithm_key": "no_quantize", "op_config": {}}
        for name in ("INPUT", "OUTPUT")
    ]
    made = quantizer.Quantizer(str(path))
    made.load_quantization_recipe(rules)
    size = example[0].shape[0]
    samples = [
        {f"args_{place}": array[start : start + size] for place, array in enumerate(arrays)}
        for start in range(0, len(arrays[0]) // size * size, size)
    ]
    return made.quantize(_widest(made, samples))


def _widest(made: Any, samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """The least and largest value of every tensor over all samples.

    The quantiser's own calibration averages the samples' extremes, which cuts off what is above: the winning logits of
    all samples came out equal.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for sample in samples:
        for name, seen in made.calibrate({"serving_default": [sample]}, num_threads=1).items():
            known = found.setdefault(name, dict(seen))
            known["min"] = np.minimum(known["min"], seen["min"])
            known["max"] = np.maximum(known["max"], seen["max"])
    return found
