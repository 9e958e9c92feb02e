"""AOTInductor from an exported program: compiled for this processor by the C++ compiler of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def convert(arguments: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Write the package `target` from the exported program `source`."""
    import torch
    import torch._inductor

    program = torch.export.load(str(arguments["source"]))
    about = {**arguments["metadata"], "sarto_inputs": json.dumps(arguments["inputs"])}
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(arguments["target"]),
        inductor_configs={"aot_inductor.metadata": about},
    )
    return {}
