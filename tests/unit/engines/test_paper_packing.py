"""The paper's packing: Enc, Dec and H learn, the fragments do not, and the model holds no decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sarto.engines.slicepack.paper import PaperSettings, paper_pack
from sarto.engines.slicepack.paper.packing import pack_loss
from sarto.errors import RequestError, ShapeError
from sarto.graph import branch, capture, with_head, with_layer
from sarto.testing.pico import pico


def fragments(seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Features of two fragments, each of which knows its own class from the two others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(2).repeat(10)
    shift = torch.nn.functional.one_hot(labels, 2).double() * 2
    parts = [torch.relu(torch.randn(20, d, generator=generator, dtype=torch.float64)) for d in (4, 6)]
    return [part + shift[:, place : place + 1] for place, part in enumerate(parts)], labels


def test_packing_learns_to_tell_the_classes_apart_and_to_decode_each_from_its_own_samples() -> None:
    features, labels = fragments()
    loss = []
    for steps in (0, 300):
        pack = paper_pack(features, labels, 2, PaperSettings(pack_steps=steps))
        loss.append(float(pack_loss(pack, features, labels, [0, 1], 1.0, torch.arange(20))))
    assert loss[1] < loss[0] / 2
    assert (pack.scores(torch.cat(features, 1)).argmax(1) == labels).double().mean() >= 0.95
    assert pack.encoder[0].shape == (6, 10)
    assert [decoder[0].shape for decoder in pack.decoders] == [(4, 6), (6, 6)]


def test_only_the_classes_own_samples_reach_a_decoder() -> None:
    features, labels = fragments()
    pack = paper_pack(features, labels, 2, PaperSettings(pack_steps=0))
    changed = [features[0].clone(), features[1]]
    changed[0][labels == 1] += 5.0  # what fragment 0 says of class 1 enters the codes, no decoder aims at it
    codes = pack.codes(torch.cat(changed, 1))
    by_hand = torch.nn.functional.cross_entropy(torch.nn.functional.linear(codes, *pack.classifier), labels)
    for cls in (0, 1):
        own = labels == cls
        by_hand = by_hand + 0.5 * (pack.decoded(cls, codes[own]) - changed[cls][own]).square().sum(1).mean()
    assert float(pack_loss(pack, changed, labels, [0, 1], 1.0, torch.arange(20))) == pytest.approx(
        float(by_hand)
    )


def test_decoders_end_as_the_features_do() -> None:
    features, labels = fragments()
    signed = [features[0], features[1] - 3]
    for activation, want in (("range", (True, False)), ("relu", (True, True)), ("identity", (False, False))):
        settings = PaperSettings.parse({"pack_steps": 0, "dec_activation": activation})
        assert paper_pack(signed, labels, 2, settings).decoder_relu == want


def test_packing_is_decided_by_its_seed_and_leaves_features_alone() -> None:
    features, labels = fragments()
    before = [part.clone() for part in features]
    settings = PaperSettings(pack_steps=5, batch=7)
    one, two = (paper_pack(features, labels, 2, settings) for _ in range(2))
    other = paper_pack(features, labels, 2, settings.replace(seed=1))
    assert torch.equal(one.encoder[0], two.encoder[0])
    assert not torch.equal(one.encoder[0], other.encoder[0])
    assert all(torch.equal(part, held) for part, held in zip(features, before, strict=True))


def test_encoder_and_classifier_go_onto_the_graph_of_the_fragments() -> None:
    model, inputs = pico("plain")
    graph = capture(model, inputs, prove=False)
    joined = branch([graph, with_head(graph, torch.eye(3, dtype=torch.float64) * 2)])
    features = joined(inputs)
    assert isinstance(features, Tensor)
    labels = torch.tensor([0, 1, 0])
    pack = paper_pack([features[:, :3], features[:, 3:]], labels, 2, PaperSettings(pack_steps=3))
    whole = with_layer(joined, "encoder", *pack.encoder, relu=True)
    whole = with_head(whole, *pack.classifier)
    torch.testing.assert_close(whole(inputs), pack.scores(features))
    assert whole.analysis.group("encoder").size == 3


def test_several_classes_of_one_fragment_share_its_decoder() -> None:
    features, labels = fragments()
    pack = paper_pack(features[:1], labels, 2, PaperSettings(pack_steps=2), owners=[0, 0])
    assert len(pack.decoders) == 1


def test_what_can_not_be_packed_is_said() -> None:
    features, labels = fragments()
    with pytest.raises(ShapeError, match="features"):
        paper_pack([features[0][:3], features[1]], labels, 2)
    with pytest.raises(RequestError, match=r"classes \[2\] have none"):
        paper_pack(features, labels, 3, owners=[0, 1, 1])
    with pytest.raises(RequestError, match="each of the 2 classes needs one of the 2 fragments"):
        paper_pack(features, labels, 2, owners=[0, 2])
