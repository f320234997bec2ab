"""oneDNN's convolutions, which jaxlib holds for x86-64: XLA calls them by name."""

import dataclasses
import json

import jax
import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.geometry import align
from jaxgroupconv.lowerings.phases import by_phase
from jaxgroupconv.spec import ConvSpec


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    if spec.compute_dtype != np.float32:
        return f"computed in {spec.compute_dtype}, not float32"
    if spec.ndim > 3:
        return "more than three spatial axes"
    if "gn" in spec.lhs_layout:
        return "batch groups"
    for layout, channels in ((spec.lhs_layout, "gc"), (spec.out_layout, "go")):
        if layout not in (f"n{channels}{spec.spatial}", f"n{spec.spatial}{channels}"):
            return f"axes {layout}"
    return None


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    lhs, rhs = (lax.convert_element_type(x, np.float32) for x in (lhs, rhs))
    last = dataclasses.replace(spec, lhs_layout=f"n{spec.spatial}gc", out_layout=f"n{spec.spatial}go", out_dtype=np.dtype(np.float32))
    lhs = align(lhs, spec.lhs_layout.replace("g", ""), last.lhs_layout.replace("g", ""))
    out = by_phase(_undilated, last, lhs, rhs) if spec.phases > 1 or any(d > 1 for d in spec.lhs_dilation) else _undilated(last, lhs, rhs)
    out = align(out, last.out_layout.replace("g", ""), spec.out_layout.replace("g", ""))
    return lax.convert_element_type(out, spec.out_dtype)


def _undilated(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    if spec.ndim == 1:
        two = _two(spec)
        return lax.reshape(_undilated(two, lax.reshape(lhs, two.lhs_shape), lax.reshape(rhs, two.rhs_shape)), spec.out_shape)
    result = jax.ShapeDtypeStruct(spec.out_shape, np.float32)
    call = jax.ffi.ffi_call("__onednn$convolution", result, custom_call_api_version=1, legacy_backend_config=_config(spec))
    return call(lhs, rhs)


def _two(spec: ConvSpec) -> ConvSpec:
    """A 1-D convolution as a 2-D one of height one."""
    layouts = {name: getattr(spec, name).replace("0", "01") for name in ("lhs_layout", "rhs_layout", "out_layout")}
    sizes = {name: (1, *getattr(spec, name)) for name in ("in_size", "window", "strides", "lhs_dilation", "rhs_dilation")}
    return dataclasses.replace(spec, padding=((0, 0), *spec.padding), **layouts, **sizes)


def _config(spec: ConvSpec) -> str:
    lhs, rhs, out = (layout.replace("g", "") for layout in (spec.lhs_layout, spec.rhs_layout, spec.out_layout))

    def data(layout: str, channels: str) -> dict:
        return {"batch_dim": layout.index("n"), "feature_dim": layout.index(channels), "spatial_dims": spatial(layout)}

    def spatial(layout: str) -> list[int]:
        return [layout.index(axis) for axis in spec.spatial]

    kernel = {"output_feature_dim": rhs.index("o"), "input_feature_dim": rhs.index("c"), "spatial_dims": spatial(rhs)}
    window = {
        "size": spec.window,
        "pad_left": [low for low, _ in spec.padding],
        "pad_right": [high for _, high in spec.padding],
        "strides": spec.strides,
        "window_dilations": spec.rhs_dilation,
    }
    config = {
        "dims": spec.ndim + 2,
        "feature_groups": spec.groups,
        "input": {"data": data(lhs, "c")},
        "kernel": {"filter": kernel},
        "output": {"data": data(out, "o")},
        "window": window,
    }
    return json.dumps({"onednn_conv_config": config})
