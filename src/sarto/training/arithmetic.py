"""Which arithmetic a device has, so that half precision is used only where it saves time.

Images are trained on in channels_last only with it: oneDNN's float32 kernel for AVX2 writes past its memory where a
strided convolution of one pixel reads fewer than 8 such channels, as shortcuts of sliced networks do: the process dies
(uxlfoundation/oneDNN issue 6035, open in torch 2.13).
"""

from __future__ import annotations

import torch


def has_bfloat16(device: str = "cpu") -> bool:
    """Whether a device computes in bfloat16 itself.

    A processor that does not gives the same results, but takes many times as long as in float32: one with AVX2 alone
    took 60 times as long for a product of matrices or a convolution. Where torch is too old to tell, the answer is no.

    Args:
        device: as torch names it: "cpu", "cuda:1".
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return False
    told = getattr(torch.cpu, "get_capabilities", None)
    able = told() if told is not None else {}
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
