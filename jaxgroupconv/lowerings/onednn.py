"""oneDNN's convolutions: hand-written kernels that jaxlib holds for x86-64, and that XLA:CPU calls by a name.

XLA has that name for its own use (`xla_cpu_experimental_onednn_custom_call`). So nothing is taken for granted: only versions of
jaxlib are called that were tried at length (others may wait for ever, or end the process where they read a call differently),
and before the first call a process computes a small convolution with it, and keeps to the other lowerings if that fails.

A call is opaque to XLA. Its partitioner would gather the operands, an exported program would ask another machine for the name,
and XLA cannot store a compiled program that holds one. Where that matters, oneDNN is not planned.
"""

import dataclasses
import functools
import json
import math
import pathlib
import platform
import threading
from typing import Any

import jax
import jaxlib.version
import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.geometry import align
from jaxgroupconv.lowerings.phases import by_phase
from jaxgroupconv.spec import ConvSpec

TRIED = ("0.12",)  # of jaxlib; 0.10 may wait for ever, in what oneDNN computes by its GEMM
_TARGET = "__onednn$convolution"
_FLOAT32 = np.dtype(np.float32)


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
    if "gn" in spec.lhs_layout:
        return "batch groups"
    return None


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before), channel-last: for other layouts oneDNN has few kernels.

    The operands of a narrow dtype are converted before, and the result after it.
    """
    last = dataclasses.replace(spec, lhs_layout=f"n{spec.spatial}gc", out_layout=f"n{spec.spatial}go", out_dtype=_FLOAT32)
    lhs, rhs = (lax.convert_element_type(operand, _FLOAT32) for operand in (lhs, rhs))
    lhs = align(lhs, _merged(spec.lhs_layout), _merged(last.lhs_layout))
    dilated = any(dilation > 1 for dilation in spec.lhs_dilation)
    out = by_phase(_call, last, lhs, rhs) if dilated else _call(last, lhs, rhs)
    return lax.convert_element_type(align(out, _merged(last.out_layout), _merged(spec.out_layout)), spec.out_dtype)


def _merged(layout: str) -> str:
    return layout.replace("g", "")


def _call(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """An undilated input's convolution. In one dimension it is a plane of height one, for which there are faster kernels."""
    if spec.ndim == 1:
        plane = _as_plane(spec)
        return lax.reshape(_call(plane, lax.reshape(lhs, plane.lhs_shape), lax.reshape(rhs, plane.rhs_shape)), spec.out_shape)
    result = jax.ShapeDtypeStruct(spec.out_shape, _FLOAT32)
    return jax.ffi.ffi_call(_TARGET, result, custom_call_api_version=1, legacy_backend_config=_config(spec))(lhs, rhs)


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
    """Whether a convolution with groups, strides, dilation and uneven padding is computed as it is defined."""
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
    out = jax.jit(functools.partial(_call, spec))(*jax.device_put((lhs, rhs), jax.local_devices(backend="cpu")[0]))
    padded = np.pad(lhs, ((0, 0), *spec.padding, (0, 0))).reshape(2, 6, 11, 2, 8)
    windows = [[padded[:, 2 * i : 2 * i + 4, j : j + 9 : 2] for j in range(3)] for i in range(2)]
    expected = np.einsum("ijnyxgc,ijcgo->nyxgo", windows, rhs.reshape(2, 3, 8, 2, 8))
    return np.array_equal(out, expected.reshape(spec.out_shape))
