"""The architectures of the coverage table, as data: what to build, small and random, and what to feed it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

#: What `importlib.util.find_spec` must find before an architecture of a source can be built.
PACKAGES: Mapping[str, str] = {"zoo": "sarto", "transformers": "transformers"}


@dataclass(frozen=True)
class Given:
    """One input: `image` or `signal` (normal numbers), `ids` (integers from 3 up), `mask` (ones, a tail of zeros)."""

    kind: str
    shape: tuple[int, ...]
    high: int = 100

    def make(self, batch: int, generator: torch.Generator) -> Tensor:
        """A batch, shape (batch, *shape)."""
        shape = (batch, *self.shape)
        if self.kind == "ids":
            return torch.randint(3, self.high, shape, generator=generator)
        if self.kind == "mask":
            mask = torch.ones(shape, dtype=torch.int64)
            mask[0, -max(1, shape[1] // 4) :] = 0
            return mask
        return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Architecture:
    """A model to build.

    Attributes:
        name: one word, unique; how the table calls it.
        source: `zoo` or `transformers`.
        build: factory or class name in that package.
        inputs: name of the keyword (or "" for positional) -> what to feed.
        settings: arguments of the factory, or of the configuration class where one is named.
        config: name of the configuration class; a setting (class name, settings) is a nested configuration.
        part: submodule that is taken, e.g. `encoder`.
        picked: attributes of the output that count, joined by commas; "" takes the first entry.
        fixed: keyword arguments of every call.
        listed: keyword that takes all inputs as one list.
    """

    name: str
    source: str
    build: str
    inputs: Mapping[str, Given]
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    part: str = ""
    picked: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    listed: str = ""

    def module(self) -> nn.Module:
        """The model in evaluation mode, taking its inputs by position and returning tensors.

        Raises:
            ImportError: the package is not installed, or has no such name.
        """
        package = importlib.import_module(
            {"zoo": "sarto.zoo", "torch": "torch.nn"}.get(self.source, self.source)
        )
        factory = _named(package, self.build)
        if self.config:
            model = factory(_configuration(package, self.config, self.settings))
        else:
            model = factory(**self.settings)
        if self.part:
            model = model.get_submodule(self.part)
        if self.source == "zoo":
            return model.eval()
        wrapper = (_One, _Two, _Three)[len(self.inputs) - 1]
        return wrapper(model, tuple(self.inputs), self.picked, dict(self.fixed), self.listed).eval()

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """A batch of every input."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(given.make(batch, generator) for given in self.inputs.values())


class _Wrapper(nn.Module):
    """Gives keyword inputs by position and picks tensors out of the output."""

    def __init__(
        self, model: nn.Module, keys: tuple[str, ...], picked: str, fixed: dict[str, Any], listed: str
    ) -> None:
        super().__init__()
        self.model, self.keys, self.fixed, self.listed = model, keys, fixed, listed
        self.picked = tuple(name for name in picked.split(",") if name)

    def answer(self, *given: Tensor) -> Any:
        named = {self.listed: list(given)} if self.listed else dict(zip(self.keys, given, strict=True))
        out = self.model(**named, **self.fixed)
        if not self.picked:
            return out if isinstance(out, Tensor) else out[0]
        found = tuple(getattr(out, name) for name in self.picked)
        if len(found) > 1:
            return found
        return tuple(found[0]) if isinstance(found[0], list) else found[0]


class _One(_Wrapper):
    def forward(self, first: Tensor) -> Any:
        return self.answer(first)


class _Two(_Wrapper):
    def forward(self, first: Tensor, second: Tensor) -> Any:
        return self.answer(first, second)


class _Three(_Wrapper):
    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> Any:
        return self.answer(first, second, third)


def _named(package: Any, name: str) -> Any:
    found = getattr(package, name, None)
    if found is None:
        raise ImportError(f"{package.__name__} has no {name!r}")
    return found


def _configuration(package: Any, name: str, settings: Mapping[str, Any]) -> Any:
    plain = {
        key: _configuration(package, *value)
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)
        else value
        for key, value in settings.items()
    }
    return _named(package, name)(**plain)


IMAGE = {"pixel_values": Given("image", (3, 32, 32))}
IMAGE_64 = {"pixel_values": Given("image", (3, 64, 64))}
IMAGE_128 = {"pixel_values": Given("image", (3, 128, 128))}
TEXT = {"input_ids": Given("ids", (12,)), "attention_mask": Given("mask", (12,))}
IDS = {"input_ids": Given("ids", (12,))}

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_PATCHES = {**_SMALL, "image_size": 32, "patch_size": 8}
_WORDS = {**_SMALL, "vocab_size": 100, "max_position_embeddings": 40}
_STAGES = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
_WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
_DECODER = {**_WORDS, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
_GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "use_cache": False}
_SEGFORMER = {**_STAGES, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32}
_WHISPER = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 16,
    "max_source_positions": 20, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
_WAV2VEC2 = {
    **_SMALL, "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 2),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3,
    "classifier_proj_size": 16,
}  # fmt: skip
_DETECTOR_HEADS = {
    "d_model": 32, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
_DETR = {
    **_DETECTOR_HEADS, "encoder_layers": 1, "num_queries": 7,
    "backbone_config": ("ResNetConfig", {**_RESNET, "out_features": ["stage4"]}),
}  # fmt: skip
_RTDETR = {
    **_DETECTOR_HEADS, "encoder_hidden_dim": 32, "encoder_in_channels": [32, 32, 64], "num_queries": 10,
    "decoder_n_points": 2, "decoder_in_channels": [32, 32, 32], "anchor_image_size": [64, 64],
    "backbone_config": (
        "RTDetrResNetConfig", {**_RESNET, "out_features": ["stage2", "stage3", "stage4"], "layer_type": "basic"}
    ),
}  # fmt: skip

_BACKBONE = ("feature_maps", "model.backbone.model")


def _hub(
    name: str,
    build: str,
    config: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Given],
    picked: str = "logits",
    part: str = "",
    **fixed: Any,
) -> Architecture:
    return Architecture(name, "transformers", build, inputs, settings, config, part, picked, fixed)


def _images(
    name: str, family: str, settings: Mapping[str, Any], inputs: Mapping[str, Given] = IMAGE
) -> Architecture:
    return _hub(name, f"{family}ForImageClassification", f"{family}Config", settings, inputs)


def _texts(
    name: str, family: str, settings: Mapping[str, Any], inputs: Mapping[str, Given] = TEXT
) -> Architecture:
    return _hub(name, f"{family}ForSequenceClassification", f"{family}Config", settings, inputs)


def _decoder(name: str, family: str, **more: Any) -> Architecture:
    return _hub(name, f"{family}ForCausalLM", f"{family}Config", {**_DECODER, **more}, TEXT, use_cache=False)


TRANSFORMERS = (
    _images("vit", "ViT", _PATCHES),
    _images("deit", "DeiT", _PATCHES),
    _images("swin", "Swin", _WINDOWS),
    _images("swinv2", "Swinv2", _WINDOWS),
    _images("resnet", "ResNet", _RESNET),
    _images("regnet", "RegNet", {**_RESNET, "groups_width": 8}),
    _images("convnext", "ConvNext", _STAGES),
    _images("convnextv2", "ConvNextV2", _STAGES),
    _images("mobilenetv2", "MobileNetV2", {"image_size": 32, "depth_multiplier": 0.35}),
    _images(
        "mobilevit", "MobileViT",
        {"image_size": 128, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
         "num_attention_heads": 4}, IMAGE_128,
    ),
    _images(
        "efficientnet", "EfficientNet",
        {"image_size": 32, "width_coefficient": 1.0, "hidden_dim": 1280, "num_block_repeats": [1] * 7},
    ),
    _images("segformer", "Segformer", _SEGFORMER, IMAGE_64),
    _hub("segformer-masks", "SegformerForSemanticSegmentation", "SegformerConfig", _SEGFORMER, IMAGE_64),
    _images("poolformer", "PoolFormer", _STAGES),
    _images(
        "levit", "Levit",
        {"image_size": 128, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
         "key_dim": [8, 8, 8]}, IMAGE_128,
    ),
    _images("beit", "Beit", {**_PATCHES, "use_relative_position_bias": True}),
    _images(
        "dinov2", "Dinov2",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    ),
    _hub("clip-vision", "CLIPVisionModel", "CLIPVisionConfig", _PATCHES, IMAGE, "pooler_output"),
    _texts("bert", "Bert", _WORDS),
    _texts("roberta", "Roberta", _WORDS),
    _texts(
        "distilbert", "DistilBert",
        {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 40},
    ),
    _texts("albert", "Albert", {**_WORDS, "embedding_size": 16}),
    _texts("electra", "Electra", {**_WORDS, "embedding_size": 16}),
    _hub("gpt2", "GPT2LMHeadModel", "GPT2Config", _GPT2, TEXT, use_cache=False),
    _texts("gpt2-classes", "GPT2", {**_GPT2, "pad_token_id": 0}),
    _decoder("llama", "Llama"),
    _hub("llama-classes", "LlamaForSequenceClassification", "LlamaConfig", _DECODER, TEXT, use_cache=False),
    _decoder("qwen2", "Qwen2"),
    _decoder("qwen3", "Qwen3", head_dim=8),
    _decoder("gemma", "Gemma", head_dim=8),
    _decoder("mistral", "Mistral"),
    _hub(
        "t5-encoder", "T5EncoderModel", "T5Config",
        {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, TEXT,
        "last_hidden_state",
    ),
    _hub(
        "whisper-encoder", "WhisperModel", "WhisperConfig", _WHISPER,
        {"input_features": Given("signal", (16, 40))}, "last_hidden_state", "encoder",
    ),
    _hub(
        "wav2vec2", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", _WAV2VEC2,
        {"input_values": Given("signal", (800,))},
    ),
    _hub(
        "detr", "DetrForObjectDetection", "DetrConfig", _DETR,
        {**IMAGE_64, "pixel_mask": Given("mask", (64, 64))}, "logits,pred_boxes",
    ),
    _hub("detr-backbone", "DetrForObjectDetection", "DetrConfig", _DETR, IMAGE_64, *_BACKBONE),
    _hub("rt-detr", "RTDetrForObjectDetection", "RTDetrConfig", _RTDETR, IMAGE_64, "logits,pred_boxes"),
    Architecture(
        "rt-detr-encoder", "transformers", "RTDetrForObjectDetection",
        {f"map_{side}": Given("image", (32, side, side)) for side in (8, 4, 2)}, _RTDETR, "RTDetrConfig",
        "model.encoder", "last_hidden_state", listed="inputs_embeds",
    ),
    _hub(
        "rt-detr-decoder", "RTDetrForObjectDetection", "RTDetrConfig", _RTDETR,
        {"inputs_embeds": Given("signal", (10, 32)), "encoder_hidden_states": Given("signal", (84, 32)),
         "reference_points": Given("signal", (10, 4))}, "last_hidden_state", "model.decoder",
        spatial_shapes_list=[(8, 8), (4, 4), (2, 2)],
    ),
    _hub("rt-detr-backbone", "RTDetrForObjectDetection", "RTDetrConfig", _RTDETR, IMAGE_64, *_BACKBONE),
)  # fmt: skip


def _zoo(name: str, build: str, given: Given, **settings: Any) -> Architecture:
    return Architecture(f"zoo-{name}", "zoo", build, {"x": given}, settings)


_CIFAR = Given("image", (3, 32, 32))
_IMAGE_64 = Given("image", (3, 64, 64))
_WORD_IDS = Given("ids", (12,))
_READER: Mapping[str, Any] = {"n_classes": 5, "n_words": 100, "width": 16, "hidden": 20}

_NARROW: Mapping[str, Any] = {"n_classes": 10, "width": 16, "stem": "cifar"}

ZOO = (
    _zoo("vgg", "vgg", _CIFAR, n_classes=10),
    _zoo("vgg16-bn", "vgg16_bn_cifar", _CIFAR),
    _zoo("cifar-resnet20", "cifar_resnet", _CIFAR, n_classes=10),
    _zoo("cifar-resnet20-pad", "cifar_resnet", _CIFAR, n_classes=10, shortcut="pad"),
    _zoo("resnet18", "resnet18", _CIFAR, **_NARROW),
    _zoo("resnet34", "resnet34", _CIFAR, **_NARROW),
    _zoo("resnet50", "resnet50", _CIFAR, **_NARROW),
    _zoo("resnext", "resnext_cifar", _CIFAR, groups=4, group_width=8, width=16),
    _zoo("densenet", "densenet_cifar", _CIFAR, depth=40),
    _zoo("mobilenetv2", "mobilenet_v2", _CIFAR, n_classes=10),
    _zoo("mobilenetv3", "mobilenet_v3_cifar", _CIFAR),
    _zoo("efficientnet", "efficientnet_cifar", _CIFAR, width_ratio=0.25),
    _zoo("efficientnet-lite0", "efficientnet_lite0", _IMAGE_64, n_classes=10),
    _zoo("shufflenetv2", "shufflenet_v2_cifar", _CIFAR),
    _zoo("convnext", "convnext_cifar", _CIFAR, depths=(1, 1, 2, 1), widths=(16, 32, 48, 64)),
    _zoo("unet", "unet", _IMAGE_64, width=8),
    _zoo("fastestdet", "fastestdet", Given("image", (3, 96, 96)), n_classes=5),
    _zoo("vit", "vit_cifar", _CIFAR, width=48, depth=2),
    _zoo("swin", "swin_cifar", _CIFAR, width=24, heads=(3, 6, 12)),
    _zoo("text-cnn", "text_cnn", _WORD_IDS, n_classes=5, n_words=100, width=16, filters=12),
    _zoo("rnn", "recurrent", _WORD_IDS, cell="rnn", **_READER),
    _zoo("gru", "recurrent", _WORD_IDS, cell="gru", layers=2, **_READER),
    _zoo("lstm", "recurrent", _WORD_IDS, cell="lstm", **_READER),
    _zoo("bilstm", "recurrent", _WORD_IDS, cell="lstm", layers=2, bidirectional=True, pool="mean", **_READER),
)

ARCHITECTURES: tuple[Architecture, ...] = (*ZOO, *TRANSFORMERS)


def architectures(sources: tuple[str, ...], names: tuple[str, ...] = ()) -> tuple[Architecture, ...]:
    """Those of the given sources, or only the named ones; a name may be the beginning of several.

    Raises:
        ValueError: a name is unknown.
    """
    found = [a for a in ARCHITECTURES if a.source in sources]
    if not names:
        return tuple(found)
    exact = {a.name for a in found}
    unknown = [n for n in names if not any(a.name.startswith(n) for a in found)]
    if unknown:
        raise ValueError(f"no architecture {unknown}; known: {sorted(exact)}")
    return tuple(
        a for a in found if any(a.name == n or (n not in exact and a.name.startswith(n)) for n in names)
    )
