"""Which ATen operators a graph may hold, and how their arguments are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sarto.errors import GraphError, suggest
from sarto.graph.model import Arg, Constant

_LISTED = (
    # linear operators
    "conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv_transpose1d.default "
    "conv_transpose2d.input linear.default _weight_norm.default matmul.default mm.default bmm.default "
    "addmm.default "
    "baddbmm.default einsum.default scaled_dot_product_attention.default embedding.default "
    # recurrent
    "lstm.input gru.input rnn_tanh.input rnn_relu.input "
    # normalisation
    "batch_norm.default instance_norm.default layer_norm.default group_norm.default rms_norm.default "
    "softmax.int log_softmax.int _softmax.default cumsum.default "
    # elementwise, unary
    "relu.default relu6.default gelu.default silu.default sigmoid.default tanh.default elu.default "
    "selu.default celu.default leaky_relu.default hardswish.default hardsigmoid.default hardtanh.default "
    "mish.default softplus.default prelu.default clamp.default clamp_min.default "
    "clamp_max.default abs.default neg.default exp.default log.default log1p.default sqrt.default "
    "rsqrt.default square.default reciprocal.default erf.default sin.default cos.default sign.default "
    "floor.default ceil.default round.default logical_not.default bitwise_not.default isnan.default "
    "log_sigmoid.default softsign.default hardshrink.default softshrink.default "
    "threshold.default exp2.default expm1.default log2.default tan.default atan.default trunc.default "
    "frac.default "
    "isinf.default nan_to_num.default dropout.default feature_dropout.default alpha_dropout.default "
    "clone.default "
    "to.dtype _to_copy.default "
    # elementwise, binary and more
    "add.Tensor add.Scalar sub.Tensor sub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar "
    "div.Tensor_mode rsub.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar maximum.default "
    "minimum.default where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar "
    "masked_fill.Tensor eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar "
    "gt.Tensor gt.Scalar ge.Tensor ge.Scalar logical_and.default logical_or.default bitwise_and.Tensor "
    "bitwise_or.Tensor logical_xor.default bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Tensor "
    "remainder.Scalar "
    "remainder.Tensor fmod.Scalar floor_divide.default floor_divide.Scalar clamp.Tensor atan2.default "
    "lerp.Scalar lerp.Tensor "
    "addcmul.default addcdiv.default "
    # reductions
    "mean.dim mean.default sum.dim_IntList sum.default amax.default amin.default var.correction "
    "std.correction prod.dim_int argmax.default argmin.default any.dim all.dim max.dim min.dim topk.default "
    "sort.default argsort.default logsumexp.default linalg_vector_norm.default "
    # shape
    "reshape.default permute.default transpose.int t.default expand.default cat.default stack.default "
    "slice.Tensor select.int flip.default roll.default repeat.default repeat_interleave.self_int "
    "pad.default constant_pad_nd.default index.Tensor index_select.default gather.default "
    "pixel_shuffle.default pixel_unshuffle.default unfold.default im2col.default tril.default triu.default "
    "diff.default masked_scatter.default scatter.value scatter.src one_hot.default bucketize.Tensor "
    "grid_sampler.default grid_sampler_2d.default "
    # pools and resampling
    "max_pool1d.default max_pool2d.default avg_pool1d.default avg_pool2d.default "
    "adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_max_pool1d.default "
    "adaptive_max_pool2d.default upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec "
    "upsample_nearest2d.default upsample_bilinear2d.default upsample_nearest1d.vec upsample_linear1d.vec "
    "upsample_trilinear3d.vec upsample_nearest3d.vec max_pool3d.default avg_pool3d.default "
    "adaptive_avg_pool3d.default "
    # factories
    "arange.default arange.start arange.start_step zeros.default ones.default full.default "
    "zeros_like.default ones_like.default full_like.default scalar_tensor.default new_zeros.default "
    "new_ones.default new_full.default"
)

#: Operators that a graph file may name: pure tensor arithmetic, nothing that reads files, draws on the
#: environment or runs code. A captured model with another operator is refused by name.
ALLOWED: frozenset[str] = frozenset(f"aten.{name}" for name in _LISTED.split())

_FOLDED = (
    # views
    "view.default _unsafe_view.default flatten.using_ints unflatten.int unsqueeze.default squeeze.default "
    "squeeze.dim "
    "squeeze.dims view_as.default reshape_as.default expand_as.default detach.default detach_.default "
    "alias.default "
    "lift_fresh_copy.default contiguous.default chunk.default split.Tensor split_with_sizes.default "
    "split.sizes "
    "unbind.int numpy_T.default mT.default "
    # conversions
    "to.device to.dtype_layout to.other type_as.default "
    # grids
    "meshgrid.indexing meshgrid.default linspace.default eye.default eye.m triu_indices.default "
    "tril_indices.default "
    "outer.default diff.default "
    # arithmetic
    "min.other max.other min.default max.default __and__.Tensor __or__.Tensor bitwise_left_shift.Tensor "
    # in place
    "copy_.default fill_.Scalar fill_.Tensor zero_.default add_.Tensor add_.Scalar sub_.Tensor mul_.Tensor "
    "mul_.Scalar div_.Tensor masked_fill_.Scalar index_put_.default ceil_.default floor_.default "
    "clamp_.default "
    "abs_.default log_.default sign_.default"
)

#: Operators that may be computed once, at capture, when all that they read is constant: pure arithmetic too, some of
#: it in place on values of its own.
FOLDABLE: frozenset[str] = ALLOWED | {f"aten.{name}" for name in _FOLDED.split()}

#: Not an operator of ATen: picks one output of a node with several.
GETITEM = "getitem"


@dataclass(frozen=True)
class Signature:
    """Argument names of an operator: the positional ones in order, then the keyword-only ones."""

    positional: tuple[str, ...]
    keyword: tuple[str, ...]
    defaults: Mapping[str, Any]


@cache
def overload(op: str) -> torch._ops.OpOverload:
    """The torch operator of an allowed name.

    Raises:
        GraphError: the name is not on the allow-list, or this torch does not have it.
    """
    if op not in ALLOWED:
        raise GraphError(
            f"operator {op!r} is not on the list of allowed operators{suggest(op, sorted(ALLOWED))}"
        )
    _, name, variant = op.split(".")
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, variant, None) if packet is not None else None
    if found is None:
        raise GraphError(f"operator {op!r} is allowed but torch {torch.__version__} does not have it")
    return found  # type: ignore[no-any-return]


@cache
def signature(op: str) -> Signature:
    """Argument names and defaults of an allowed operator, from its schema."""
    schema = overload(op)._schema
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return Signature(
        tuple(a.name for a in schema.arguments if not a.kwarg_only),
        tuple(a.name for a in schema.arguments if a.kwarg_only),
        defaults,
    )


_ENUMERATIONS: Mapping[type, str] = {
    torch.dtype: "dtype",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
}


def freeze_constant(value: object) -> Constant | None:
    """The text form of a torch enumeration or device; None where the value is neither."""
    if isinstance(value, torch.device):
        return Constant("device", value.type)
    kind = _ENUMERATIONS.get(type(value))
    return Constant(kind, str(value).removeprefix("torch.")) if kind else None


_CONSTANTS: Mapping[str, frozenset[str]] = {
    "dtype": frozenset(
        ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
    ),
    "layout": frozenset(["strided"]),
    "memory_format": frozenset(["contiguous_format", "preserve_format", "channels_last"]),
    "device": frozenset(["cpu", "cuda"]),
}


def thaw_constant(constant: Constant) -> object:
    """The torch value that a `Constant` stands for.

    Raises:
        GraphError: kind or value is not on the list.
    """
    if constant.value not in _CONSTANTS.get(constant.kind, frozenset()):
        raise GraphError(
            f"constant {constant.kind}={constant.value!r} is not on the list of allowed constants"
        )
    if constant.kind == "device":
        return torch.device(constant.value)
    return getattr(torch, constant.value)


def is_scalar(value: object) -> bool:
    """Whether a value can stand in a graph as it is."""
    return value is None or isinstance(value, bool | int | float | str)


def default_args(op: str) -> dict[str, Arg]:
    """The schema's defaults of an operator as graph arguments."""
    filled: dict[str, Arg] = {}
    for name, value in signature(op).defaults.items():
        if is_scalar(value):
            filled[name] = value
        elif isinstance(value, list | tuple):
            filled[name] = tuple(value)
        else:
            filled[name] = freeze_constant(value)
    return filled
