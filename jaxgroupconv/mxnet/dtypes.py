"""MXNet's numbers for dtypes, as files and `__dtype__` attributes hold them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

# 8 to 11 are reserved for i16, u16, u32 and u64, but MXNet 1.9.1 itself refuses them.
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(dtype)
    for code, dtype in {
        0: np.float32,
        1: np.float64,
        2: np.float16,
        3: np.uint8,
        4: np.int32,
        5: np.int8,
        6: np.int64,
        7: np.bool_,
        12: jnp.bfloat16,
    }.items()
}
CODES: dict[np.dtype, int] = {dtype: code for code, dtype in DTYPES.items()}


def read(text: str) -> type | None:
    """The dtype in a `__dtype__` attribute, a number, as NumPy's class; -1 means none."""
    if text == "-1":
        return None
    if not text.isdecimal() or int(text) not in DTYPES:
        raise ValueError(f"`__dtype__` must be one of {', '.join(map(str, DTYPES))} or -1, but got {text!r}.")
    return DTYPES[int(text)].type


def code(dtype: Any) -> int:
    """MXNet's number for a dtype; ValueError for one that MXNet has not."""
    dtype = np.dtype(dtype).newbyteorder("=")
    if dtype not in CODES:
        known = ", ".join(str(each) for each in CODES)
        raise ValueError(f"`dtype` must be one that MXNet has, but got {dtype}. Convert the array to one of {known}.")
    return CODES[dtype]
