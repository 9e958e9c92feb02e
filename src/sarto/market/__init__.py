"""Where models wait: learnwares with their samples and specification, and the fragments made from them."""

from __future__ import annotations

from sarto.market.blobs import Blobs, FolderBlobs, Staged
from sarto.market.manifest import IDENTITY, content_id, id_of
from sarto.market.preprocess import to_tensor
from sarto.market.reading import read_samples
from sarto.market.rows import Fragment
from sarto.market.samples import Samples, encode_samples
from sarto.market.store import Removed, Store

__all__ = [
    "IDENTITY",
    "Blobs",
    "FolderBlobs",
    "Fragment",
    "Removed",
    "Samples",
    "Staged",
    "Store",
    "content_id",
    "encode_samples",
    "id_of",
    "read_samples",
    "to_tensor",
]
