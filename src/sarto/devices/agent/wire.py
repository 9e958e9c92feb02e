"""Arrays as JSON, both ways."""

from __future__ import annotations

import base64
import binascii
import math
from typing import get_args

import numpy as np

from sarto.devices.agent.messages import Array, DType
from sarto.errors import RequestError


def to_wire(array: np.ndarray) -> Array:
    """An array to send.

    Raises:
        RequestError: its type can't be sent.
    """
    if array.dtype.name not in get_args(DType):
        raise RequestError(f"arrays of {array.dtype} can't be sent; known are {', '.join(get_args(DType))}")
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(flat.tobytes()).decode("ascii")
    return Array(dtype=array.dtype.name, shape=array.shape, data=data)  # type: ignore[arg-type]


def from_wire(sent: Array) -> np.ndarray:
    """The array that was sent.

    Raises:
        RequestError: the data is no base64, or not as long as type and shape say.
    """
    dtype = np.dtype(sent.dtype)
    try:
        data = base64.b64decode(sent.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"the data of an array is no base64: {error}") from error
    size = dtype.itemsize * math.prod(sent.shape)
    if len(data) != size:
        shown = " x ".join(map(str, sent.shape)) or "one number"
        raise RequestError(f"an array of {sent.dtype}, {shown}, has {size:,} bytes; {len(data):,} were sent")
    flat = np.frombuffer(data, np.uint8) != 0
    if sent.dtype != "bool":
        flat = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    try:
        return flat.reshape(sent.shape)
    except ValueError as error:
        # A size of 0 beside sizes that no array may have.
        shown = " x ".join(map(str, sent.shape))
        raise RequestError(f"an array of {sent.dtype}, {shown}, can't be made: {error}") from error
