"""OpenVINO from ONNX; int8 by NNCF's post-training quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def convert(arguments: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Write `target` (.xml, with .bin beside it) from the ONNX file `source`; the arrays are calibration samples."""
    import openvino

    model = openvino.Core().read_model(str(arguments["source"]))
    if arguments["precision"] == "int8":
        model = _quantized(model, arrays, bool(arguments["attention"]))
    for name, text in arguments["metadata"].items():
        model.set_rt_info(text, ["sarto", name])
    half = arguments["precision"] == "float16"
    openvino.save_model(model, str(arguments["target"]), compress_to_fp16=half)
    return {}


def _quantized(model: Any, arrays: Sequence[np.ndarray], attention: bool) -> Any:
    import nncf

    names = [port.get_any_name() for port in model.inputs]
    size = 8
    batches = [
        {name: array[start : start + size] for name, array in zip(names, arrays, strict=True)}
        for start in range(0, len(arrays[0]), size)
    ]
    kind = nncf.ModelType.TRANSFORMER if attention else None
    # The widest range that was seen: the default averages the batches' extremes, which cuts off what is above.
    # And seven bits for weights: processors with AVX2 alone cut off sums of products with full ones.
    settings = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE,
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
    )
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=kind,
        advanced_parameters=settings,
    )
