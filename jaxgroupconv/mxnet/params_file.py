"""`.params` files: arrays by name, or a list of arrays, in every version of the format.

Reading maps the file into memory and hands out views of it, so nothing is copied and nothing is allocated. Files are not
trusted: each length is checked against the bytes that are left before anything is made of it.
"""

import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from jaxgroupconv.mxnet import dtypes

Array = np.ndarray | jax.Array | sparse.BCOO | sparse.BCSR | None

_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE, _ROW_SPARSE, _CSR = 0, 1, 2
_MAX_RANK = 32
_CPU = struct.pack("<ii", 1, 0)


def load(path: str | os.PathLike) -> dict[str, Array] | list[Array]:
    """Reads a `.params` file.

    Args:
      path: the file.

    Returns:
      The arrays by name, or a list if the file has no names. Dense arrays are read-only NumPy arrays over the mapped file, with
      the dtype that is stored (bfloat16 included); sparse ones are `jax.experimental.sparse` arrays, row-sparse as BCOO with
      one sparse dimension, csr as BCSR; "no array" is None.

    Raises:
      ValueError: for a damaged file, with the place of the damage; for sparse values that JAX would narrow, because it is not
        in 64-bit mode.
    """
    with open(path, "rb") as file:
        # An empty file cannot be mapped; it has no header either, which the reader says.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""
    reader = _Reader(Path(path), memoryview(content))
    magic, _ = reader.unpack("<QQ", "the file's magic number")
    if magic != _MAGIC:
        reader.fail(f"the magic number must be {_MAGIC:#x}, but is {magic:#x}")
    # The shortest array is a V0 one of rank 0, 4 bytes; the shortest name is 8.
    arrays = [_read_array(reader) for _ in range(reader.count("arrays", each=4))]
    names = [_read_name(reader) for _ in range(reader.count("names", each=8))]
    if not names:
        return arrays
    if len(names) != len(arrays):
        reader.fail(f"the number of names must be 0 or {len(arrays)}, the number of arrays, but is {len(names)}")
    return dict(zip(names, arrays, strict=True))


def save(path: str | os.PathLike, data: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a `.params` file, byte for byte as MXNet 1.9.1 writes it.

    Args:
      path: the file; it is replaced once the new one is whole, so `save(path, load(path))` is safe.
      data: arrays by name, or a list of arrays: NumPy's or JAX's, BCOO (row-sparse), BCSR, or None. If one of them has rank 0
        or a size of 0, dense arrays are written in the format's version 3, which alone can hold such; otherwise in version 2.

    Raises:
      ValueError: for a dtype or a sparse form that the format has not.
      TypeError: for data that is neither a mapping nor a sequence.
    """
    if isinstance(data, Mapping):
        names, arrays = list(data), list(data.values())
    elif isinstance(data, (list, tuple)):
        names, arrays = [], list(data)
    else:
        raise TypeError(f"`data` must be a dict or a list, but got {type(data).__name__}. Wrap a single array in a list.")
    arrays = [x if x is None or isinstance(x, (sparse.BCOO, sparse.BCSR)) else np.asarray(x) for x in arrays]
    version = (
        _V3 if any(isinstance(x, np.ndarray) and x.size == 0 or np.shape(x) == () for x in arrays if x is not None) else _V2
    )
    pieces = [_pieces(x, version) for x in arrays]  # before the file is touched: this is where errors are found
    target = os.path.realpath(path)  # a link stays one
    part = f"{target}.{os.getpid()}.part"
    try:
        # Beside the target, which may be the file that the arrays are views of: to truncate a mapped file ends the process.
        with open(part, "wb") as file:
            file.write(struct.pack("<QQQ", _MAGIC, 0, len(arrays)))
            for piece in pieces:
                _write_array(file, *piece)
            file.write(struct.pack("<Q", len(names)))
            for name in names:
                encoded = name.encode()
                file.write(struct.pack("<Q", len(encoded)) + encoded)
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


class _Reader:
    """A position in a file; everything read is checked against what is left."""

    def __init__(self, path: Path, content: memoryview) -> None:
        self.path, self.content, self.at = path, content, 0

    def fail(self, complaint: str) -> NoReturn:
        raise ValueError(f"{self.path} is no valid .params file: near byte {self.at} of {len(self.content)}, {complaint}.")

    def bytes(self, count: int, what: str) -> memoryview:
        if count > len(self.content) - self.at:
            self.fail(f"{what} must be {count} bytes, but {len(self.content) - self.at} are left")
        self.at += count
        return self.content[self.at - count : self.at]

    def unpack(self, form: str, what: str) -> tuple[int, ...]:
        return struct.unpack(form, self.bytes(struct.calcsize(form), what))

    def count(self, what: str, each: int) -> int:
        (count,) = self.unpack("<Q", f"the number of {what}")
        if count * each > len(self.content) - self.at:
            self.fail(f"{count} {what} do not fit into the {len(self.content) - self.at} bytes left")
        return count

    def shape(self, sizes: str = "q") -> tuple[int, ...] | None:
        """A shape behind its rank, in 64-bit sizes; None for an unknown one."""
        (rank,) = self.unpack("<i", "a rank")
        if rank == -1:
            return None
        return self.sizes(rank, sizes)

    def sizes(self, rank: int, kind: str) -> tuple[int, ...] | None:
        if not 0 <= rank <= _MAX_RANK:
            self.fail(f"a rank must be in 0..{_MAX_RANK}, but is {rank}")
        sizes = self.unpack(f"<{rank}{kind}", "a shape")
        if any(size < -1 for size in sizes):
            self.fail(f"sizes must not be negative, but are {sizes}")
        return None if -1 in sizes else sizes

    def dtype(self) -> np.dtype:
        (code,) = self.unpack("<i", "a dtype")
        if code not in dtypes.DTYPES:
            self.fail(f"a dtype must be one of {sorted(dtypes.DTYPES)}, but is {code}")
        return dtypes.DTYPES[code]

    def array(self, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        data = self.bytes(math.prod(shape) * dtype.itemsize, f"an array of {dtype} of shape {shape}")
        return np.frombuffer(data, dtype).reshape(shape) if data else np.zeros(shape, dtype)


def _read_array(reader: _Reader) -> Array:
    (magic,) = reader.unpack("<I", "an array's header")
    if magic not in (_V1, _V2, _V3):
        if magic > _MAX_RANK:
            reader.fail(f"an array must begin with a version or a rank up to {_MAX_RANK}, but begins with {magic:#x}")
        return _read_dense(reader, reader.sizes(magic, "I"), scalar=False)  # before versions there was just the rank
    if magic == _V1:
        return _read_dense(reader, reader.shape(), scalar=False)
    (storage,) = reader.unpack("<i", "a storage type")
    if storage == _DENSE:
        return _read_dense(reader, reader.shape(), scalar=magic == _V3)
    if storage in (_ROW_SPARSE, _CSR):
        return _read_sparse(reader, storage)
    reader.fail(f"a storage type must be 0, 1 or 2, but is {storage}")


def _read_dense(reader: _Reader, shape: tuple[int, ...] | None, scalar: bool) -> np.ndarray | None:
    if shape is None or (not shape and not scalar):
        return None
    reader.unpack("<ii", "a device")
    return reader.array(reader.dtype(), shape)


def _read_sparse(reader: _Reader, storage: int) -> sparse.BCOO | sparse.BCSR | None:
    stored, shape = reader.shape(), reader.shape()
    if not shape:
        return None
    reader.unpack("<ii", "a device")
    dtype = reader.dtype()
    kinds = [(reader.dtype(), reader.shape()) for _ in range(1 if storage == _ROW_SPARSE else 2)]
    if stored is None or any(each is None or len(each) != 1 or kind.kind != "i" for kind, each in kinds):
        reader.fail("a sparse array must have known sizes and vectors of integers as indices")
    values = reader.array(dtype, stored)
    indices = [reader.array(kind, each) for kind, each in kinds if each is not None]
    if dtype.itemsize == 8 and not jax.config.read("jax_enable_x64"):
        reader.fail(f"a sparse array holds {dtype}, which JAX narrows. Load it under jax.enable_x64(True)")
    count, columns = len(indices[-1]), math.prod(shape[:1] if storage == _ROW_SPARSE else shape[1:])
    if stored != ((count, *shape[1:]) if storage == _ROW_SPARSE else (count,)):
        reader.fail(f"the values of a sparse array of shape {shape} with {count} indices cannot have the shape {stored}")
    if count and not (0 <= indices[-1].min() and indices[-1].max() < columns):
        reader.fail(
            f"the indices of a sparse array must be in 0..{columns - 1}, but reach {indices[-1].min()}..{indices[-1].max()}"
        )
    if storage == _ROW_SPARSE:
        unique = len(np.unique(indices[0])) == count
        return sparse.BCOO((jnp.asarray(values), jnp.asarray(indices[0][:, None])), shape=shape, unique_indices=unique)
    rows = indices[0]
    if len(shape) != 2 or len(rows) != shape[0] + 1 or rows[0] != 0 or rows[-1] != count or (np.diff(rows) < 0).any():
        reader.fail(f"indptr of a csr array of shape {shape} must rise from 0 to {count} over the rows")
    return sparse.BCSR((jnp.asarray(values), jnp.asarray(indices[1]), jnp.asarray(rows)), shape=shape)


def _read_name(reader: _Reader) -> str:
    (length,) = reader.unpack("<Q", "a name's length")
    encoded = reader.bytes(length, "a name")
    try:
        return str(encoded, "utf-8")
    except UnicodeDecodeError as error:
        reader.fail(f"a name must be UTF-8, but {error}")


def _pieces(x: Any, version: int) -> tuple[bytes, list[np.ndarray]]:
    """An array's header, and the arrays whose bytes follow it."""
    if x is None:
        return struct.pack("<Iii", _V2, _DENSE, 0), []
    if isinstance(x, np.ndarray):
        return struct.pack("<Ii", version, _DENSE) + _shape(x.shape) + _CPU + _code(x), [x]
    if x.n_batch or (isinstance(x, sparse.BCOO) and x.n_sparse != 1) or (isinstance(x, sparse.BCSR) and x.n_dense):
        raise ValueError(
            f"A sparse array must be a BCOO with one sparse dimension or a BCSR matrix, but got {x}. Make it one, or dense."
        )
    if isinstance(x, sparse.BCOO):
        storage, values, indices = _ROW_SPARSE, np.asarray(x.data), [np.asarray(x.indices)[:, 0]]
    else:
        storage, values, indices = _CSR, np.asarray(x.data), [np.asarray(x.indptr), np.asarray(x.indices)]
    indices = [each.astype(np.int64) for each in indices]
    auxiliary = b"".join(_code(each) + _shape(each.shape) for each in indices)
    head = struct.pack("<Ii", _V2, storage) + _shape(values.shape) + _shape(x.shape) + _CPU + _code(values) + auxiliary
    return head, [values, *indices]


def _write_array(file: BinaryIO, head: bytes, arrays: list[np.ndarray]) -> None:
    file.write(head)
    for x in arrays:
        x = x.astype(x.dtype.newbyteorder("<"), copy=False)
        file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def _shape(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<i{len(shape)}q", len(shape), *shape)


def _code(x: np.ndarray) -> bytes:
    return struct.pack("<i", dtypes.code(x.dtype))
