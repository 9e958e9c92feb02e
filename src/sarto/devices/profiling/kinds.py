"""Kinds of operators: those of one kind share their speed on a device."""

from __future__ import annotations

from collections.abc import Mapping

from sarto.graph import Node
from sarto.graph.operators import GETITEM

#: Operators that multiply.
PRODUCT_KINDS = (
    "convolution",
    "pointwise",
    "depthwise",
    "grouped",
    "transposed",
    "linear",
    "product",
    "attention",
    "recurrent",
)
#: All others.
OTHER_KINDS = ("norm", "elementwise", "activation", "pool", "move", "view", "lookup")

_WORDS: Mapping[str, str] = {
    "norm": "batch_norm instance_norm layer_norm group_norm rms_norm softmax log_softmax _softmax cumsum",
    "activation": "gelu silu sigmoid tanh elu selu celu hardswish hardsigmoid mish softplus exp log log1p sqrt rsqrt "
    "erf sin cos log_sigmoid softsign exp2 expm1 log2 tan atan pow",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d mean sum amax amin var std prod argmax argmin any all "
    "max min topk sort argsort logsumexp linalg_vector_norm",
    "move": "cat stack flip roll repeat repeat_interleave pad constant_pad_nd pixel_shuffle pixel_unshuffle im2col "
    "contiguous clone upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_nearest1d upsample_linear1d "
    "upsample_trilinear3d upsample_nearest3d grid_sampler grid_sampler_2d scatter masked_scatter",
    "view": "reshape permute transpose t expand slice select unfold dropout feature_dropout alpha_dropout to",
    "lookup": "embedding index index_select gather one_hot bucketize",
    "linear": "linear",
    "product": "matmul mm bmm addmm baddbmm einsum",
    "attention": "scaled_dot_product_attention",
    "recurrent": "lstm gru rnn_tanh rnn_relu",
    "transposed": "conv_transpose1d conv_transpose2d",
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}


def kind_of(node: Node, kernel: int = 1) -> str:
    """The kind of a node's operator; what is not named is elementwise.

    Args:
        kernel: positions that a convolution reads at once.
    """
    if node.op == GETITEM:
        return "view"
    word = node.op.split(".")[1]
    if word not in ("conv1d", "conv2d", "conv3d"):
        return _KINDS.get(word, "elementwise")
    groups = node.args.get("groups", 1)
    if groups == 1:
        return "pointwise" if kernel == 1 else "convolution"
    return "depthwise" if groups == node.shape[1] else "grouped"
