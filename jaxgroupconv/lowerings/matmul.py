"""Matrix products batched over the groups; patches where the window is larger than one.

Good for 1x1 kernels, for many channels a group, for weight gradients, where each output position is one product over the
batch and all positions of the window, and for transposed convolutions whose stride is their kernel's size: one product.
"""

import itertools
import math
from typing import Any

import numpy as np
from jax import Array, lax

from jaxgroupconv.lowerings.geometry import align, by_phase, contract, pad, spatial_slices, take
from jaxgroupconv.spec import ConvSpec

MAX_PRODUCTS = 64


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    kind, sizes = ("output positions", spec.out_size) if spec.short_output else ("kernel rows", spec.window[:-1])
    products = math.prod(sizes)
    return None if products <= MAX_PRODUCTS else f"{products} {kind} exceed {MAX_PRODUCTS} matrix products"


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    if spec.disjoint:
        return _over_inputs(spec, *spec.split(lhs, rhs))
    if any(d > 1 for d in spec.lhs_dilation):
        return by_phase(lower, spec, lhs, rhs)
    lhs, rhs = spec.split(lhs, rhs)
    lhs = pad(spec, lhs)
    out = _over_outputs(spec, lhs, rhs) if spec.short_output else _over_rows(spec, lhs, rhs)
    return lax.reshape(lax.convert_element_type(out, spec.out_dtype), spec.out_shape)


def _over_inputs(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """One product of the input and the whole kernel: each position becomes a block of outputs, as large as the kernel."""
    within = str.maketrans("0123", "wxyz")  # the axes of a block: the kernel's
    rhs = lax.rev(rhs, [spec.rhs_layout.index(axis) for axis in spec.spatial])
    operands = [(rhs, spec.rhs_layout.translate(within)), (lhs, spec.lhs_layout)]
    axes = "".join(axis + axis.translate(within) if axis in spec.spatial else axis for axis in spec.out_layout)
    sizes = [size * dilation for size, dilation in zip(spec.in_size, spec.lhs_dilation, strict=True)]
    blocks = lax.reshape(_product(spec, operands, axes), spec.shape(spec.out_layout, sizes))
    edges = [(0, 0, 0)] * blocks.ndim
    for axis, size in enumerate(sizes):
        low = spec.padding[axis][0] - (spec.lhs_dilation[axis] - 1)
        edges[spec.out_layout.index(str(axis))] = (low, spec.out_size[axis] - size - low, 0)
    out = lax.pad(blocks, np.zeros((), blocks.dtype), edges)
    return lax.reshape(lax.convert_element_type(out, spec.out_dtype), spec.out_shape)


def _over_outputs(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """One product for each output position, contracted over channels and window."""
    products, axes = [], ""
    for position in itertools.product(*map(range, spec.out_size)):
        starts = [p * s for p, s in zip(position, spec.strides, strict=True)]
        x = take(lhs, spec.lhs_layout, **spatial_slices(starts, spec.window, spec.rhs_dilation))
        product, axes = contract(x, spec.lhs_layout, rhs, spec.rhs_layout, batch="g", **_options(spec))
        products.append(lax.expand_dims(product, [0]))
    sizes = spec.sizes(spec.out_size)
    out = lax.reshape(lax.concatenate(products, 0), [sizes[axis] for axis in spec.spatial + axes])
    return align(out, spec.spatial + axes, spec.out_layout)


def _over_rows(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """For each row of the kernel, patches of its columns and one product, contracted over channels and columns."""
    at, last = spec.lhs_layout.index("c"), str(spec.ndim - 1)
    patch_axes = spec.lhs_layout[:at] + "k" + spec.lhs_layout[at:]
    row_axes = "".join("k" if axis == last else axis for axis in spec.rhs_layout if axis not in spec.spatial[:-1])
    out = None
    for row in itertools.product(*map(range, spec.window[:-1])):
        columns = []
        for column in range(spec.window[-1]):
            starts = [k * d for k, d in zip((*row, column), spec.rhs_dilation, strict=True)]
            columns.append(take(lhs, spec.lhs_layout, **spatial_slices(starts, spec.out_size, spec.strides)))
        weights = take(rhs, spec.rhs_layout, **{f"s{axis}": k for axis, k in enumerate(row)})
        weights = lax.squeeze(weights, [spec.rhs_layout.index(axis) for axis in spec.spatial[:-1]])
        patches = lax.concatenate([lax.expand_dims(column, [at]) for column in columns], at)
        product = _product(spec, [(weights, row_axes), (patches, patch_axes)], spec.out_layout)
        out = product if out is None else lax.add(out, product)
    assert out is not None
    return out


def _product(spec: ConvSpec, operands: list[tuple[Array, str]], axes: str) -> Array:
    """The product of the kernel and the input, each with its axes; the result's minor axis belongs to the second operand."""
    (a, a_axes), (b, b_axes) = operands if spec.out_layout.endswith(spec.spatial) else operands[::-1]
    return align(*contract(a, a_axes, b, b_axes, batch="g", **_options(spec)), axes)


def _options(spec: ConvSpec) -> dict[str, Any]:
    return dict(precision=spec.precision, preferred_element_type=spec.compute_dtype)
