"""Parameters in the formats of others: `.npz` and `.safetensors`, channel-first or channel-last."""

import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO

import numpy as np

from jaxgroupconv.mxnet.symbol import Symbol

Progress = Callable[[int], None]
CHUNK = 1 << 24  # bytes between two reports of progress


def channel_last(symbol: Symbol, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Lays the weights of channel-first convolutions out channel-last.

    Args:
      symbol: the network.
      arrays: its parameters by name.

    Returns:
      The same arrays, but Convolution's weights (*k, I/G, O) instead of (O, I/G, *k), as Flax and Keras have them, and
      Deconvolution's (*k, O/G, C) instead of (C, O/G, *k): this library's own channel-last layouts.
    """
    weights = set()
    for layer in symbol.get_internals():
        node = layer.heads[0][0]
        if node.op and node.op.name in ("Convolution", "Deconvolution"):
            if not (node.parameters.layout or "NCHW").endswith("C"):
                weights.add(node.inputs[1][0].name)
    return {name: np.moveaxis(x, (0, 1), (-1, -2)) if name in weights else x for name, x in arrays.items()}


def save_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], progress: Progress = lambda count: None) -> None:
    """Writes arrays as NumPy's `.npz`, bfloat16 widened to float32, which it has not.

    Args:
      path: the file.
      arrays: dense arrays by name.
      progress: called with the number of bytes that were written since the last call.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, x in arrays.items():
            wide = x.astype(np.float32) if x.dtype.name == "bfloat16" else np.asarray(x, order="C")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(wide))
                _write(file, wide, lambda count, x=x, wide=wide: progress(count * x.itemsize // wide.itemsize))


def save_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], progress: Progress = lambda count: None
) -> None:
    """Writes arrays in the safetensors format: a JSON header, then the arrays end to end. Arguments as `save_npz`'s."""
    header, offset = {}, 0
    for name, x in arrays.items():
        header[name] = {"dtype": _SAFETENSORS[x.dtype.name], "shape": x.shape, "data_offsets": (offset, offset + x.nbytes)}
        offset += x.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the arrays begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for x in arrays.values():
            _write(file, np.asarray(x, order="C"), progress)


def chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array in C order, piece by piece."""
    flat = x.reshape(-1).view(np.uint8)
    return (flat[at : at + CHUNK] for at in range(0, flat.size, CHUNK))


def _write(file: IO[bytes], x: np.ndarray, progress: Progress) -> None:
    for chunk in chunks(x):
        file.write(chunk.data)
        progress(chunk.size)


_SAFETENSORS = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
}
