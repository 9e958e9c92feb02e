"""Model folders of `transformers`: small random models, as `save_pretrained` writes them."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sarto.errors import RequestError
from sarto.market import to_tensor
from sarto.pipeline import InputSpec, load_source
from sarto.pipeline.sources.processing import read_image_processor

transformers = pytest.importorskip("transformers", minversion="5.0")

SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def vit(**changed: Any) -> Any:
    config = transformers.ViTConfig(**{**SIZES, "image_size": 8, "patch_size": 4, "num_labels": 3, **changed})
    return transformers.ViTForImageClassification(config)


def bert(**changed: Any) -> Any:
    config = transformers.BertConfig(
        **{**SIZES, "vocab_size": 50, "max_position_embeddings": 40, "num_labels": 3, **changed}
    )
    return transformers.BertForSequenceClassification(config)


def resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def saved(model: Any, folder: Path) -> Any:
    """The model in evaluation mode, written to a folder."""
    model.eval().save_pretrained(folder)
    return model


def edit(path: Path, **changed: Any) -> None:
    """Change keys of a JSON file; None takes a key out."""
    found = json.loads(path.read_text())
    for key, value in changed.items():
        found.pop(key, None)
        if value is not None:
            found[key] = value
    path.write_text(json.dumps(found))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to connect fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a source reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@torch.no_grad()
def differs(graph: Any, model: Any, names: tuple[str, ...], field: str, *inputs: Tensor) -> float:
    """Largest absolute difference between a graph and the model that transformers runs."""
    want = model(**dict(zip(names, inputs, strict=True)))[field]
    return float((graph(*inputs) - want).abs().max())


def test_an_image_classifier_gives_the_logits_that_transformers_gives(tmp_path: Path) -> None:
    model = saved(vit(id2label={0: "cat", 1: "dog", 2: "cat"}), tmp_path)
    source = load_source(str(tmp_path))
    (entry,) = source.graph.inputs
    assert (entry.name, entry.shape[1:]) == ("pixel_values", (3, 8, 8))
    assert differs(source.graph, model, ("pixel_values",), "logits", torch.randn(5, 3, 8, 8)) < 1e-5
    assert source.origin == f"transformers folder {tmp_path.name}: ViTForImageClassification"
    # Two classes of one name could not be told apart in an order.
    assert source.classes == ("cat (0)", "dog", "cat (2)") and "cat" in source.notes[-1]
    assert source.preprocessing is None
    assert source.graph.parameters <= set(dict(model.named_parameters()))


def test_a_convolutional_net_is_read_at_the_size_that_is_asked(tmp_path: Path) -> None:
    model = saved(resnet(), tmp_path)
    source = load_source(str(tmp_path), input_shape=(3, 32, 32))
    assert differs(source.graph, model, ("pixel_values",), "logits", torch.randn(3, 3, 32, 32)) < 1e-5
    assert len(source.graph.analysis.sliceable) > 0


def test_a_text_classifier_reads_ids_and_their_mask(tmp_path: Path) -> None:
    model = saved(bert(), tmp_path)
    source = load_source(str(tmp_path), inputs=[InputSpec((9,), "int64")])
    assert [(entry.name, entry.dtype, entry.shape[1:]) for entry in source.graph.inputs] == [
        ("input_ids", "int64", (9,)),
        ("attention_mask", "int64", (9,)),
    ]
    ids, mask = torch.randint(0, 50, (4, 9)), torch.ones(4, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    assert differs(source.graph, model, ("input_ids", "attention_mask"), "logits", ids, mask) < 1e-5
    changed = ids.clone()
    changed[1, 5:] = 7
    torch.testing.assert_close(source.graph(changed, mask)[1], source.graph(ids, mask)[1])


def test_a_base_model_gives_its_last_hidden_state_or_what_is_asked(tmp_path: Path) -> None:
    model = saved(transformers.BertModel(bert().config), tmp_path)
    source = load_source(str(tmp_path), input_shape=(6,))
    given = torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    names = ("input_ids", "attention_mask")
    assert differs(source.graph, model, names, "last_hidden_state", *given) < 1e-5 and source.classes == ()
    pooled = load_source(str(tmp_path), input_shape=(6,), arguments={"output": "pooler_output"})
    assert differs(pooled.graph, model, names, "pooler_output", *given) < 1e-5
    with pytest.raises(RequestError, match=r"gives no 'logits' \(known: last_hidden_state, pooler_output\)"):
        load_source(str(tmp_path), arguments={"output": "logits"})


def test_sound_is_read_as_a_wave_or_as_features(tmp_path: Path) -> None:
    config = transformers.ASTConfig(
        **SIZES, patch_size=4, frequency_stride=4, time_stride=4, max_length=12, num_mel_bins=8
    )
    model = saved(transformers.ASTForAudioClassification(config), tmp_path)
    source = load_source(str(tmp_path))
    assert source.graph.inputs[0].shape[1:] == (12, 8)
    assert differs(source.graph, model, ("input_values",), "logits", torch.randn(2, 12, 8)) < 1e-5


def test_inputs_by_name_take_the_place_of_those_from_the_config(tmp_path: Path) -> None:
    model = saved(bert(), tmp_path)
    specs = [InputSpec((5,), "int64", "input_ids", below=50), InputSpec((5,), "int64", "token_type_ids")]
    source = load_source(str(tmp_path), inputs=specs)
    given = torch.randint(0, 50, (3, 5)), torch.randint(0, 2, (3, 5))
    assert differs(source.graph, model, ("input_ids", "token_type_ids"), "logits", *given) < 1e-5
    with pytest.raises(RequestError, match=r"no input 'token_type_idz' \(did you mean 'token_type_ids'\?\)"):
        load_source(str(tmp_path), inputs=[InputSpec((5,), "int64", "token_type_idz"), specs[0]])
    with pytest.raises(RequestError, match="name them as the model does, for instance input_ids="):
        load_source(str(tmp_path), inputs=[InputSpec((5,), "int64")] * 2)
    with pytest.raises(
        RequestError, match=r"does not run on input_ids \[2, 41\].*by name \(--input input_ids="
    ):
        load_source(str(tmp_path), input_shape=(41,))


def test_half_precision_and_shards_are_read(tmp_path: Path) -> None:
    model = bert().eval()
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="2KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    source = load_source(str(tmp_path), input_shape=(6,))
    assert source.graph.floating_dtype == "float32"
    given = torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    assert differs(source.graph, model.float(), ("input_ids", "attention_mask"), "logits", *given) < 1e-5


def test_a_class_can_be_chosen(tmp_path: Path) -> None:
    model = saved(vit(), tmp_path)
    source = load_source(str(tmp_path), arguments={"architecture": "ViTModel"})
    # The folder has no pooler, and the last hidden state needs none.
    assert source.origin.endswith(": ViTModel") and "2 tensors of the folder are not used" in source.notes[0]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        want = model.vit(pixel_values=x).last_hidden_state
    torch.testing.assert_close(source.graph(x), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(RequestError, match=r"pooler\.dense\.bias: is missing"):
        load_source(str(tmp_path), arguments={"architecture": "ViTModel", "output": "pooler_output"})
    for asked, words in (
        ("ViTModell", "has no model class 'ViTModell'"),
        ("BertModel", "BertModel reads configs of type 'bert', this one is 'vit'"),
        ("pipeline", "has no model class 'pipeline'"),
        ("os.system", "has no model class"),
    ):
        with pytest.raises(RequestError, match=words):
            load_source(str(tmp_path), arguments={"architecture": asked})
    with pytest.raises(RequestError, match=r"takes no argument 'outputs' \(did you mean 'output'\?\)"):
        load_source(str(tmp_path), arguments={"outputs": "logits"})


def test_tensors_that_are_missing_are_never_made_up(tmp_path: Path) -> None:
    saved(vit(), tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["classifier.weight"]
    state["classifier.bias"] = torch.zeros(4)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(
        RequestError, match=r"2 problems: classifier\.weight: is missing; classifier\.bias: has an"
    ):
        load_source(str(tmp_path))


def _bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.ones(1)}, folder / "pytorch_model.bin")


def _outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "../model.safetensors", "b": "other.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _code(folder: Path) -> None:
    (folder / "modeling_mine.py").write_text("raise SystemExit('the code was run')\n")
    auto = {"AutoConfig": "modeling_mine.Config", "AutoModel": "modeling_mine.Model"}
    edit(folder / "config.json", auto_map=auto, model_type="mine", architectures=["Model"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_bin, r"pytorch_model.bin is not read: it may hold code.*weights_only=True"),
        (lambda f: (f / "model.safetensors").unlink(), "it has no weights: neither model.safetensors nor"),
        (_outside, r"2 problems: .*names '\.\./model.safetensors'.*names 'other.bin'"),
        (
            _code,
            r"no model type 'mine'; its code is in the folder.*does not run code that comes with a model",
        ),
        (lambda f: edit(f / "config.json", model_type="vut"), r"no model type 'vut' \(did you mean 'vit'"),
        (lambda f: edit(f / "config.json", model_type=None), "no model type 'None'"),
        (lambda f: edit(f / "config.json", architectures=["Nothing"]), "no model class 'Nothing'"),
        (
            lambda f: edit(f / "config.json", architectures=["PreTrainedModel"]),
            "no model class 'PreTrainedModel'",
        ),
        (lambda f: edit(f / "config.json", architectures=["AutoModel"]), "no model class 'AutoModel'"),
        (lambda f: edit(f / "config.json", quantization_config={"bits": 4}), "its weights are quantised"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "it holds an adapter, not a whole model"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json is no JSON object"),
        (lambda f: (f / "config.json").write_text("{"), "can't read config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 40), "transformers can't load"),
        (lambda f: edit(f / "config.json", hidden_size="wide"), "transformers can't load"),
    ],
)
def test_a_folder_that_is_no_plain_model_is_refused(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "model"
    saved(vit(), folder)
    change(folder)
    with pytest.raises(RequestError, match=words):
        load_source(str(folder))


def test_code_beside_a_known_model_is_not_run(tmp_path: Path) -> None:
    model = saved(vit(), tmp_path)
    (tmp_path / "modeling_mine.py").write_text("raise SystemExit('the code was run')\n")
    edit(tmp_path / "config.json", auto_map={"AutoModelForImageClassification": "modeling_mine.Model"})
    source = load_source(str(tmp_path))
    assert differs(source.graph, model, ("pixel_values",), "logits", torch.randn(2, 3, 8, 8)) < 1e-5


def test_a_folder_without_an_architecture_gives_its_base_model(tmp_path: Path) -> None:
    saved(transformers.ViTModel(vit().config), tmp_path)
    edit(tmp_path / "config.json", architectures=None)
    assert load_source(str(tmp_path)).origin.endswith(": ViTModel")


# --- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {"size": {"height": 8, "width": 8}}),
        (
            "ViT",
            {"size": {"height": 8, "width": 8}, "image_mean": [0.1, 0.5, 0.4], "image_std": [0.2, 0.3, 0.9]},
        ),
        ("ViT", {"size": {"height": 8, "width": 8}, "do_normalize": False}),
        ("ViT", {"size": {"height": 8, "width": 8}, "do_rescale": False, "image_mean": [100.0, 120.0, 90.0]}),
        ("ViT", {"size": {"height": 8, "width": 8}, "rescale_factor": 1 / 127.5}),
        ("EfficientNet", {"size": {"height": 8, "width": 8}, "rescale_offset": True}),
        ("EfficientNet", {"size": {"height": 8, "width": 8}, "include_top": False}),
        ("EfficientNet", {"size": {"height": 8, "width": 8}, "do_normalize": False}),
        ("Levit", {"size": {"height": 8, "width": 8}, "crop_size": {"height": 8, "width": 8}}),
    ],
)
def test_preprocessing_is_that_of_the_folder(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    logging.disable(logging.WARNING)
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    processor.save_pretrained(tmp_path)
    reading = read_image_processor(tmp_path, channels=3)
    assert reading is not None and reading.preprocessing is not None and reading.size == (8, 8)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    want = processor([*images], do_resize=False, return_tensors="pt")["pixel_values"]
    said = reading.preprocessing
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (said.mean, said.std))
    torch.testing.assert_close((to_tensor(images, said) - mean) / std, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "size", "resize"),
    [
        ({"size": {"height": 9, "width": 7}, "resample": 2}, (9, 7), "bilinear"),
        ({"size": {"height": 9, "width": 7}, "resample": 3}, (9, 7), "refuse"),
        ({"size": {"shortest_edge": 9}, "resample": 2}, (9, 9), "refuse"),
        ({"size": 9, "resample": 2}, (9, 9), "refuse"),
        ({"size": {"shortest_edge": 12}, "crop_size": {"height": 8, "width": 6}, "do_center_crop": True}, (8, 6),
         "refuse"),
        ({"do_resize": False}, None, "refuse"),
    ],
)  # fmt: skip
def test_only_a_plain_bilinear_resize_is_taken_over(
    settings: dict[str, Any], size: tuple[int, int] | None, resize: str, tmp_path: Path
) -> None:
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**colours, **settings}))
    reading = read_image_processor(tmp_path, channels=3)
    assert reading is not None and reading.preprocessing is not None
    assert reading.size == reading.preprocessing.size == size and reading.preprocessing.resize == resize
    asked_to_resize = settings.get("do_resize", True)
    assert bool(reading.notes) == (resize == "refuse" and asked_to_resize)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_flip_channel_order": True}, "swaps red and blue"),
        ({"image_mean": None}, "does not say the mean and std"),
        ({"image_mean": [0.5]}, "does not say the mean and std"),
        ({"rescale_factor": "big"}, "does not say the mean and std"),
    ],
)
def test_preprocessing_that_can_not_be_said_is_not_guessed(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    whole = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 8, "width": 8}, **settings}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": whole}))
    reading = read_image_processor(tmp_path, channels=3)
    assert reading is not None and reading.preprocessing is None and reading.size == (8, 8)
    assert words in reading.notes[0]


def test_a_folder_without_images_has_no_preprocessing(tmp_path: Path) -> None:
    assert read_image_processor(tmp_path, channels=3) is None
    (tmp_path / "preprocessor_config.json").write_text("nonsense")
    with pytest.raises(RequestError, match=r"can't read preprocessor_config\.json"):
        read_image_processor(tmp_path, channels=3)
