"""Arrays over the wire: what was sent comes back, and what can't be an array is refused in words."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sarto.devices.agent.messages import Array
from sarto.devices.agent.wire import from_wire, to_wire
from sarto.errors import RequestError


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    )
)
def test_an_array_comes_back(array: np.ndarray) -> None:
    again = from_wire(to_wire(array))
    assert again.dtype == array.dtype and again.shape == array.shape
    assert again.tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(
    ("shape", "data", "told"),
    [
        ((2,), b"1234", r"float32, 2, has 8 bytes; 4 were sent"),
        ((0, 2**40, 2**40), b"", r"float32, 0 x 1099511627776 x 1099511627776, can't be made"),
    ],
)
def test_what_is_no_array_is_refused(shape: tuple[int, ...], data: bytes, told: str) -> None:
    sent = Array(dtype="float32", shape=shape, data=base64.b64encode(data).decode())
    with pytest.raises(RequestError, match=told):
        from_wire(sent)
    with pytest.raises(RequestError, match="no base64"):
        from_wire(Array(dtype="float32", shape=(1,), data="?" * 8))
