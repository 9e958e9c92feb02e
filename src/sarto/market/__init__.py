"""Where models wait: learnwares with their samples and specification, and the fragments made from them."""

from __future__ import annotations

from sarto.market.blobs import Blobs, FolderBlobs, Staged
from sarto.market.fitting import embedding_rows, reading_text_problems, sample_problems
from sarto.market.intake import LUMA, Intake, with_channels
from sarto.market.labelled import Labelled
from sarto.market.manifest import IDENTITY, content_id, id_of
from sarto.market.preprocess import to_tensor
from sarto.market.reading import has_no_labels, read_images, read_samples, read_unlabelled
from sarto.market.rows import Fragment
from sarto.market.samples import Samples, encode_samples
from sarto.market.store import Removed, Store
from sarto.market.texts import TextSamples
from sarto.market.vocabulary import Vocabulary, decode_vocabulary, joint_vocabulary, read_vocabulary, words

__all__ = [
    "IDENTITY",
    "LUMA",
    "Blobs",
    "FolderBlobs",
    "Fragment",
    "Intake",
    "Labelled",
    "Removed",
    "Samples",
    "Staged",
    "Store",
    "TextSamples",
    "Vocabulary",
    "content_id",
    "decode_vocabulary",
    "embedding_rows",
    "encode_samples",
    "has_no_labels",
    "id_of",
    "joint_vocabulary",
    "read_images",
    "read_samples",
    "read_unlabelled",
    "read_vocabulary",
    "reading_text_problems",
    "sample_problems",
    "to_tensor",
    "with_channels",
    "words",
]
