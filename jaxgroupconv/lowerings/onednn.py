"""oneDNN's convolutions: hand-written kernels that jaxlib holds for x86-64, and that XLA:CPU calls by a name.

XLA has that name for its own use (`xla_cpu_experimental_onednn_custom_call`). So nothing is taken for granted: only versions of
jaxlib are called that were tried at length (others may wait for ever, or end the process where they read a call differently),
and before the first call a process computes a small convolution and a product, and keeps to the other lowerings if that fails.

A call is opaque to XLA. Its partitioner would gather the operands, an exported program would ask another machine for the name,
and XLA cannot store a compiled program that holds one. Where that matters, oneDNN is not planned.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import platform
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jaxlib.version
import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.calls import apart, loop_apart
from jaxgroupconv.lowerings.geometry import (
    PAGED_BYTES,
    TEMPORARIES,
    align,
    divisor,
    pad,
    spatial_slices,
    take,
    take_at,
    windows,
)
from jaxgroupconv.lowerings.phases import by_phase
from jaxgroupconv.spec import ConvSpec

TRIED = ("0.12",)  # of jaxlib; 0.10 may wait for ever, in what oneDNN computes by its GEMM
_TARGET, _PRODUCT = "__onednn$convolution", "__onednn$matmul"
_FLOAT32 = np.dtype(np.float32)
ITEMS = 5  # from which on a weight gradient is a convolution, whose channels are the items and whose kernel is the cotangent
COLUMNS = 48  # most of such a kernel: oneDNN writes its rows out, and more do not fit the instruction cache


def unavailable() -> str | None:
    """The reason why this process cannot call oneDNN, or None."""
    config: Any = jax.config
    if config.jax_enable_compilation_cache and config.jax_compilation_cache_dir is not None:
        return "JAX's compilation cache is on, and XLA cannot store a program that calls oneDNN"
    return _lacking()


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    if spec.compute_dtype != _FLOAT32:
        return f"{spec.compute_dtype}, where oneDNN's kernels are float32"
    if spec.ndim > 3:
        return "more than three spatial axes"
    if spec.over_batch and any(dilation > 1 for dilation in spec.lhs_dilation):
        return "a weight gradient of a dilated input"
    return None


def is_of_items(spec: ConvSpec) -> bool:
    """Whether a weight gradient is oneDNN's convolution too, and not its products, as of a 1x1 kernel."""
    several = spec.ndim > 1 and spec.in_channels >= ITEMS and math.prod(spec.out_size) > 1
    return spec.over_batch and several and spec.window[-1] <= COLUMNS


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before), channel-last: for other layouts oneDNN has few kernels.

    The operands of a narrow dtype are converted before, and the result after it.
    """
    lhs, rhs = (lax.convert_element_type(operand, _FLOAT32) for operand in (lhs, rhs))
    if is_of_items(spec):
        compute, axes = _of_items, (spec.lhs_layout, spec.rhs_layout, f"n{spec.spatial}go")
    elif spec.over_batch:
        compute, axes = _products, (f"c{spec.spatial}gn", f"c{spec.spatial}go", f"{spec.spatial}ngo")
    else:
        dilated = any(dilation > 1 for dilation in spec.lhs_dilation)
        compute = functools.partial(by_phase, _call, pads=True) if dilated else _call
        axes = f"n{spec.spatial}gc", spec.rhs_layout, f"n{spec.spatial}go"
    last = dataclasses.replace(spec, lhs_layout=axes[0], rhs_layout=axes[1], out_layout=axes[2], out_dtype=_FLOAT32)
    lhs, rhs = spec.split(lhs, rhs)
    out = compute(last, align(lhs, spec.lhs_layout, last.lhs_layout), align(rhs, spec.rhs_layout, last.rhs_layout))
    out = lax.reshape(align(out, last.out_layout, spec.out_layout), spec.out_shape)
    return lax.convert_element_type(out, spec.out_dtype)


def _merged(layout: str) -> str:
    return layout.replace("g", "")


def _call(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """An undilated input's convolution, group axes split; in 1-D as a plane of height one, for which kernels are faster."""
    plane = _as_plane(spec) if spec.ndim == 1 else spec
    operands = lax.reshape(lhs, plane.lhs_shape), lax.reshape(rhs, plane.rhs_shape)
    return lax.reshape(_kernel(_TARGET, _config(plane), plane.out_shape, *operands), spec.shape(spec.out_layout, spec.out_size))


def _kernel(target: str, config: str, shape: Sequence[int], *operands: Array) -> Array:
    result = jax.ShapeDtypeStruct(shape, _FLOAT32)
    return jax.ffi.ffi_call(target, result, custom_call_api_version=1, legacy_backend_config=config)(*operands)


def _of_items(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """A weight gradient as a convolution whose channels are the items; in a loop, if the copies of all would be new pages."""
    items = _at_a_time(spec, lhs.nbytes + rhs.nbytes)
    part = dataclasses.replace(spec, lhs_layout=f"n{spec.spatial}gc", rhs_layout=f"{spec.spatial}cgo", in_channels=items)

    def moved(lhs: Array, rhs: Array) -> list[Array]:
        return [align(lhs, spec.lhs_layout, part.lhs_layout), align(rhs, spec.rhs_layout, part.rhs_layout)]

    if items == spec.in_channels:
        return _call(part, *moved(lhs, rhs))

    def fetch(i: Any, lhs: Array, rhs: Array) -> list[Array]:
        at = lax.mul(i, np.int32(items)), items
        slices = take_at(lhs, spec.lhs_layout, c=at), take_at(rhs, spec.rhs_layout, c=at)
        return moved(*map(lax.optimization_barrier, slices))  # else each element that is moved would be sliced

    def add(_: Any, out: Array, slices: list[Array], *_operands: Array) -> Array:
        return lax.add(out, _call(part, *slices))

    zeros = lax.full(spec.shape(spec.out_layout, spec.out_size), 0, _FLOAT32)
    return loop_apart(spec.in_channels // items, fetch, add, zeros, lhs, rhs)


def _at_a_time(spec: ConvSpec, copied: int) -> int:
    """All items, or, if their copies of so many bytes were new pages, some, which are taken and moved; enough for oneDNN."""
    if copied <= PAGED_BYTES:
        return spec.in_channels
    items = divisor(spec.in_channels, spec.in_channels * PAGED_BYTES // (4 * copied))
    return items if items >= ITEMS else next(i for i in range(ITEMS, spec.in_channels + 1) if spec.in_channels % i == 0)


def _products(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """A weight gradient as products over all items and positions, one for some neighbouring columns of a row of the kernel.

    oneDNN takes the groups where they stand between positions and channels; for XLA's products they would have to be moved.
    """
    lhs, positions = pad(spec, lhs), spec.in_channels * math.prod(spec.window)
    cotangent = lax.reshape(rhs, (1, positions, spec.groups, spec.out_channels))
    result = math.prod(spec.out_shape)
    most = TEMPORARIES * (math.prod(spec.lhs_shape) + rhs.size + result) - lhs.size - result
    at_a_time = max(1, most // (positions * spec.groups * spec.batch))

    def product_at(row: Sequence[int], columns: Sequence[int]) -> Array:
        def product_of_columns(lhs: Array, cotangent: Array) -> Array:
            parts = _columns(spec, lhs, row, columns)
            return _product(lax.reshape(parts, (1, positions, spec.groups, len(columns) * spec.batch)), cotangent)

        return apart(product_of_columns)(lhs, cotangent)  # one after the other, in the same memory

    *rows, columns = ([i * step for i in range(n)] for n, step in zip(spec.out_size, spec.strides, strict=True))
    some = [columns[i : i + at_a_time] for i in range(0, len(columns), at_a_time)]
    products = [product_at(row, part) for row in itertools.product(*rows) for part in some]
    return lax.reshape(lax.concatenate(products, 1), spec.shape(spec.out_layout, spec.out_size))


def _columns(spec: ConvSpec, lhs: Array, row: Sequence[int], columns: Sequence[int]) -> Array:
    """The windows of a padded channel-last input that start in these columns, which are the last axis but one."""
    axis, step = spec.ndim, spec.rhs_dilation[-1]
    lhs = take(lhs, spec.lhs_layout, **spatial_slices(row, spec.window[:-1], spec.rhs_dilation[:-1]))
    shape = (*lhs.shape[:axis], (spec.window[-1] - 1) * step + 1, *lhs.shape[axis + 1 :])
    found = windows(lhs, (axis,), np.array(columns, np.int32)[:, None], shape, axis + 2)
    return take(found, spec.lhs_layout.replace("n", "kn"), **{f"s{axis - 1}": slice(None, None, step)})


def _product(a: Array, b: Array) -> Array:
    """(1, p, g, m) and (1, p, g, n) to (1, m, g, n), summed over p."""
    axes = {"lhs": [1, 3, 4, 2], "rhs": [1, 3, 2, 4], "result": [1, 3, 2, 4]}  # of batch, group, row and column, from 1
    config = {"onednn_matmul_config": {name: {"tensor": {"dimensions": order}} for name, order in axes.items()}}
    return _kernel(_PRODUCT, json.dumps(config), (1, a.shape[3], *b.shape[2:]), a, b)


def _as_plane(spec: ConvSpec) -> ConvSpec:
    layouts = {name: getattr(spec, name).replace("0", "01") for name in ("lhs_layout", "rhs_layout", "out_layout")}
    sizes = {name: (1, *getattr(spec, name)) for name in ("in_size", "window", "strides", "lhs_dilation", "rhs_dilation")}
    return dataclasses.replace(spec, padding=((0, 0), *spec.padding), **layouts, **sizes)


def _config(spec: ConvSpec) -> str:
    """What XLA's call reads: its protocol buffer as JSON, in which layouts are positions of axes."""

    def axes(layout: str, **letters: str) -> dict[str, int | list[int]]:
        places = {name: _merged(layout).index(letter) for name, letter in letters.items()}
        return places | {"spatial_dims": [_merged(layout).index(axis) for axis in spec.spatial]}

    window = {
        "size": spec.window,
        "pad_left": [low for low, _ in spec.padding],
        "pad_right": [high for _, high in spec.padding],
        "strides": spec.strides,
        "window_dilations": spec.rhs_dilation,
    }
    convolution = {
        "dims": spec.ndim + 2,
        "feature_groups": spec.groups,
        "input": {"data": axes(spec.lhs_layout, batch_dim="n", feature_dim="c")},
        "kernel": {"filter": axes(spec.rhs_layout, output_feature_dim="o", input_feature_dim="c")},
        "output": {"data": axes(spec.out_layout, batch_dim="n", feature_dim="o")},
        "window": window,
    }
    return json.dumps({"onednn_conv_config": convolution})


@functools.cache
def _lacking() -> str | None:
    """What this machine and this jaxlib lack, or None; a small convolution is compiled and run, once in a process."""
    if (version := ".".join(jaxlib.version.__version__.split(".")[:2])) not in TRIED:
        return f"oneDNN's calls are known of jaxlib {' and '.join(TRIED)}, and this is {version}"
    info = pathlib.Path("/proc/cpuinfo")
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not info.exists():
        return "only jaxlib for Linux on x86-64 holds oneDNN"
    if " avx2 " not in info.read_text():
        return "a processor without AVX2, for which oneDNN has slow kernels only"
    outcome: list[str | None] = ["its trial did not end"]

    def trial() -> None:
        try:
            outcome[0] = None if _right() else "its trial's numbers are wrong"
        except Exception as error:  # whatever another jaxlib does here
            outcome[0] = f"its trial failed: {error!r}".splitlines()[0]

    thread = threading.Thread(target=trial)  # in which nothing holds of what JAX may be doing in this one
    thread.start()
    thread.join()
    return outcome[0]


def _right() -> bool:
    """Whether a convolution with groups, strides, dilation and uneven padding, and a product, are what they should be."""
    spec = ConvSpec(
        batch=2,
        groups=2,
        in_channels=8,
        out_channels=8,
        in_size=(5, 8),
        window=(2, 3),
        strides=(1, 2),
        padding=((1, 0), (2, 1)),
        lhs_dilation=(1, 1),
        rhs_dilation=(2, 1),
        lhs_layout="n01gc",
        rhs_layout="01cgo",
        out_layout="n01go",
        lhs_dtype=_FLOAT32,
        rhs_dtype=_FLOAT32,
        out_dtype=_FLOAT32,
    )
    lhs, rhs = (np.arange(math.prod(s), dtype=_FLOAT32).reshape(s) * 7 % 11 - 5 for s in (spec.lhs_shape, spec.rhs_shape))
    padded = np.pad(lhs, ((0, 0), *spec.padding, (0, 0))).reshape(2, 6, 11, 2, 8)
    windows = [[padded[:, 2 * i : 2 * i + 4, j : j + 9 : 2] for j in range(3)] for i in range(2)]
    expected = np.einsum("ijnyxgc,ijcgo->nyxgo", windows, rhs.reshape(2, 3, 8, 2, 8))
    a, b = np.arange(120, dtype=_FLOAT32).reshape(1, 5, 3, 8) % 7 - 3, np.arange(60, dtype=_FLOAT32).reshape(1, 5, 3, 4) % 5 - 2
    both = jax.jit(lambda lhs, rhs, a, b: (_call(spec, lhs, rhs), _product(a, b)))
    out, product = both(*jax.device_put((lhs, rhs, a, b), jax.local_devices(backend="cpu")[0]))
    right = np.array_equal(product, np.einsum("xpgm,xpgn->xmgn", a, b))
    return right and np.array_equal(out, expected)
