"""Sum over kernel taps of shifted slices times weights; for weight gradients, sums over blocks of rows.

XLA:CPU compiles a sum that is written out in terms into one vector loop without temporaries; each term costs one load and one
multiply-add. It compiles a reduction into a scalar loop: so rows are added up elementwise first, and the rest of the reduction
is a product with ones, which is a vector loop again.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jaxgroupconv.lowerings.geometry import align, by_phase, contract, pad, spatial_slices, spread, take
from jaxgroupconv.spec import ConvSpec

MAX_TERMS = 64  # unrolled terms of one sum; beyond, XLA's fused loop degrades and compiles slowly
LOOP_TERMS = 16  # least terms of one iteration: with fewer uses XLA does not keep the slices, but slices again in every term
MAX_ROW_TERMS = 128  # of one kernel row, which is never split
MAX_SUMS = 1024  # output positions of a weight gradient
MAX_PHASES = 4  # of a dilated input, each of which is compiled on its own; more only with
MAX_PHASE_TERMS = 256  # terms in all of them together
ROW_TERMS = 8  # products added up elementwise before a reduction
MAX_SUM_TERMS = 256  # unrolled products of all output positions; beyond, a loop over the output's rows
CACHE_BYTES = 1 << 20  # operands that one iteration over c works on


def why_not(spec: ConvSpec) -> str | None:
    """The reason why this lowering refuses the spec, or None."""
    if spec.phases > MAX_PHASES and (spec.short_output or spec.in_channels * math.prod(spec.window) > MAX_PHASE_TERMS):
        return f"{spec.phases} phases of the dilated input exceed {MAX_PHASES}"
    if spec.short_output:
        positions = math.prod(spec.out_size)
        return None if positions <= MAX_SUMS else f"{positions} output positions exceed {MAX_SUMS}"
    row = math.prod(spec.window[1:]) if spec.ndim > 1 else spec.in_channels * spec.window[0]
    if row > MAX_ROW_TERMS:
        return f"{row} terms in a row of the kernel exceed {MAX_ROW_TERMS}"
    return None


def lower(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """Computes the convolution (negative padding cropped before)."""
    if any(d > 1 for d in spec.lhs_dilation):
        return by_phase(lower, spec, lhs, rhs)
    lhs, rhs = spec.split(lhs, rhs)
    lhs, rhs = pad(spec, lhs).astype(spec.compute_dtype), rhs.astype(spec.compute_dtype)
    if spec.short_output:
        out = _over_outputs(spec, lhs, rhs)
    else:  # the weights of one term lie together, as the result needs them
        relaid = dataclasses.replace(spec, rhs_layout=spec.spatial + "c" + "".join(a for a in spec.out_layout if a in "go"))
        rhs = lax.optimization_barrier(align(rhs, spec.rhs_layout, relaid.rhs_layout))
        out = _over_taps(relaid, lhs, rhs)
    return out.astype(spec.out_dtype).reshape(spec.out_shape)


def _over_taps(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """All taps in one sum, or, where they are too many, a loop over some rows of the kernel and some channels at a time."""

    def terms(x: Array, w: Array, rows: range) -> list[Array]:
        every = itertools.product(*([rows] if spec.ndim > 1 else []), *map(range, spec.window[1:-1]))
        return [term for row in every for term in _row_terms(spec, x, w, row)]

    height, channels = spec.window[0], spec.in_channels
    if channels * math.prod(spec.window) <= MAX_TERMS or spec.ndim == 1:
        return _sum(terms(lhs, rhs, range(height)))

    in_row = math.prod(spec.window[1:])
    part = next(c for c in range(1, channels + 1) if channels % c == 0 and (c * in_row >= LOOP_TERMS or c == channels))
    count = min(height, -(-LOOP_TERMS // (part * in_row)))
    reach = (spec.out_size[0] - 1) * spec.strides[0] + (count - 1) * spec.rhs_dilation[0] + 1
    loops, rest = divmod(height, count)

    def fetch(i) -> tuple[Array, Array]:
        c, row = i // loops * part, i % loops * count
        x = lax.dynamic_slice_in_dim(lhs, c, part, spec.lhs_layout.index("c"))
        w = lax.dynamic_slice_in_dim(rhs, c, part, spec.rhs_layout.index("c"))
        x = lax.dynamic_slice_in_dim(x, row * spec.rhs_dilation[0], reach, spec.lhs_layout.index("0"))
        return x, lax.dynamic_slice_in_dim(w, row, count, spec.rhs_layout.index("0"))

    zeros = jnp.zeros(spec.shape(spec.out_layout, spec.out_size), spec.compute_dtype)
    out = _loop(spec, channels // part * loops, fetch, lambda _, out, x, w: _sum([out, *terms(x, w, range(count))]), zeros)
    return _sum([out, *terms(lhs, rhs, range(height - rest, height))])


def _row_terms(spec: ConvSpec, lhs: Array, rhs: Array, row: tuple[int, ...]) -> list[Array]:
    """The products for one row of the kernel, in the layout of the result."""
    terms, shape = [], spec.shape(spec.out_layout, spec.out_size)
    x_axes = spec.lhs_layout.replace("c", "")
    w_axes = "".join(axis for axis in spec.rhs_layout if axis in "go")
    for column, c in itertools.product(range(spec.window[-1]), range(lhs.shape[spec.lhs_layout.index("c")])):
        tap = (*row, column)
        starts = [k * d for k, d in zip(tap, spec.rhs_dilation, strict=True)]
        x = take(lhs, spec.lhs_layout, c=c, **spatial_slices(starts, spec.out_size, spec.strides))
        w = take(rhs, spec.rhs_layout, c=c, **{f"s{axis}": k for axis, k in enumerate(tap)})
        x = lax.squeeze(x, [spec.lhs_layout.index("c")])
        w = lax.squeeze(w, [i for i, axis in enumerate(spec.rhs_layout) if axis not in "go"])
        terms.append(lax.mul(spread(x, x_axes, spec.out_layout, shape), spread(w, w_axes, spec.out_layout, shape)))
    return terms


def _over_outputs(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """A weight gradient: at each output position, a slice of the input times the window, summed over c and the window.

    A loop takes as many items of c as the cache holds. For them, each row of output positions is one fusion: sums over the
    items and over blocks of the window's rows, which a product with ones then reduces.
    """
    channels = spec.in_channels
    items = _divisor(channels, min(ROW_TERMS, CACHE_BYTES * channels // (lhs.nbytes + rhs.nbytes)))
    axes = spec.spatial[:-1] + _kept_axes(spec).replace("k", spec.spatial[-1])
    shape = spec.shape(axes, spec.out_size)

    def fetch(i) -> tuple[Array, Array]:
        x = lax.dynamic_slice_in_dim(lhs, i * items, items, spec.lhs_layout.index("c"))
        return x, lax.dynamic_slice_in_dim(rhs, i * items, items, spec.rhs_layout.index("c"))

    def add(_, out: Array, x: Array, w: Array) -> Array:
        return out + _positions(spec, x, w).reshape(shape)

    if items == channels:
        out = _positions(spec, lhs, rhs).reshape(shape)
    else:
        out = _loop(spec, channels // items, fetch, add, jnp.zeros(shape, spec.compute_dtype))
    return out.transpose([axes.index(axis) for axis in spec.out_layout])


def _positions(spec: ConvSpec, lhs: Array, rhs: Array) -> Array:
    """The sums for all output positions, rows of positions first; a loop over the rows if they are many."""
    window = [rhs.shape[spec.rhs_layout.index(axis)] for axis in spec.spatial]
    items = rhs.shape[spec.rhs_layout.index("c")]
    blocks = _even(window[0], max(1, ROW_TERMS // items))
    if spec.ndim == 1:
        return _row_sums(spec, lhs, rhs, (), blocks)
    rest = list(itertools.product(*map(range, spec.out_size[1:-1])))
    if math.prod(spec.out_size) * items * blocks <= MAX_SUM_TERMS:
        return jnp.stack([_row_sums(spec, lhs, rhs, (p, *row), blocks) for p in range(spec.out_size[0]) for row in rest])

    reach = (window[0] - 1) * spec.rhs_dilation[0] + 1

    def fetch(p) -> tuple[Array]:
        return (lax.dynamic_slice_in_dim(lhs, p * spec.strides[0], reach, spec.lhs_layout.index("0")),)

    def store(p, out: Array, x: Array) -> Array:
        return lax.dynamic_update_index_in_dim(
            out, jnp.stack([_row_sums(spec, x, rhs, (0, *row), blocks) for row in rest]), p, 0
        )

    sizes = spec.sizes(spec.out_size) | {"k": spec.out_size[-1]}
    kept = [sizes[axis] for axis in _kept_axes(spec)]
    return _loop(spec, spec.out_size[0], fetch, store, jnp.zeros((spec.out_size[0], len(rest), *kept), lhs.dtype))


def _row_sums(spec: ConvSpec, lhs: Array, rhs: Array, row: tuple[int, ...], blocks: int) -> Array:
    """The sums for one row of output positions; its axes are `_kept_axes`."""
    axes, c_lhs, c_rhs = _product_axes(spec), spec.lhs_layout.index("c"), spec.rhs_layout.index("c")
    window = [rhs.shape[spec.rhs_layout.index(axis)] for axis in spec.spatial]
    height = -(-window[0] // blocks)
    columns = []
    for column in range(spec.out_size[-1]):
        starts = [p * s for p, s in zip((*row, column), spec.strides, strict=True)]
        terms = []
        for c, top in itertools.product(range(rhs.shape[c_rhs]), range(0, window[0], height)):
            counts = (min(height, window[0] - top), *window[1:])
            x_starts = (starts[0] + top * spec.rhs_dilation[0], *starts[1:])
            x = take(lhs, spec.lhs_layout, c=c, **spatial_slices(x_starts, counts, spec.rhs_dilation))
            w = take(rhs, spec.rhs_layout, c=c, **spatial_slices((top, *[0] * (spec.ndim - 1)), counts, (1,) * spec.ndim))
            x, w = lax.squeeze(x, [c_lhs]), lax.squeeze(w, [c_rhs])
            sizes = spec.sizes(counts) | {"k": 1}
            shape = [sizes[axis] for axis in axes]
            term = lax.mul(
                spread(x, spec.lhs_layout.replace("c", ""), axes, shape),
                spread(w, spec.rhs_layout.replace("c", ""), axes, shape),
            )
            short = [(0, height - counts[0] if axis == "0" else 0, 0) for axis in axes]
            terms.append(lax.pad(term, jnp.zeros((), term.dtype), short) if counts[0] < height else term)
        columns.append(_sum(terms))
    sums = lax.optimization_barrier(lax.concatenate(columns, axes.index("k")))
    # The product with ones: the summed axes come last in its first operand, or else first in its second.
    last = axes.endswith(spec.spatial)
    ones_axes = spec.spatial if last else "k" + spec.spatial
    ones = jnp.ones([sums.shape[axes.index(axis)] for axis in ones_axes], sums.dtype)
    product, kept = contract(sums, axes, ones, ones_axes) if last else contract(ones, ones_axes, sums, axes, batch="k")
    return align(product, kept, _kept_axes(spec))


def _product_axes(spec: ConvSpec) -> str:
    """The layout of the products: the input's, with o beside n, and k, the output's last axis, before the spatial ones."""
    axes = spec.lhs_layout.replace("c", "").replace("n", "no")
    first = min(axes.index(axis) for axis in spec.spatial)
    return axes[:first] + "k" + axes[first:]


def _kept_axes(spec: ConvSpec) -> str:
    """The layout of the sums once they are reduced."""
    return "".join(axis for axis in _product_axes(spec) if axis not in spec.spatial)


def _loop(spec: ConvSpec, count: int, fetch: Callable, step: Callable, init: Array) -> Array:
    """A loop over slices of the operands.

    XLA fuses slicing at a dynamic position into every use. With several channels a group that is no vector loop any more: there
    the slices are fetched one iteration ahead, which makes them arrays in memory. For depthwise ones the copies cost more.
    """
    if spec.batch * spec.out_channels == 1 or not spec.short_output:
        return lax.fori_loop(0, count, lambda i, out: step(i, out, *lax.optimization_barrier(fetch(i))), init)

    def body(i, carry):
        out, operands = carry
        return step(i, out, *operands), fetch(i + 1)

    return lax.fori_loop(0, count, body, (init, fetch(0)))[0]


def _divisor(number: int, at_most: int) -> int:
    """The largest divisor of a number that is not above a bound."""
    return next(d for d in range(max(1, min(number, at_most)), 0, -1) if number % d == 0)


def _even(number: int, at_most: int) -> int:
    """A size of parts of which the number is a multiple, if that costs no more than half of the bound; else the bound."""
    at_most = min(number, at_most)
    divisor = _divisor(number, at_most)
    return divisor if 2 * divisor > at_most else at_most


def _sum(terms: list[Array]) -> Array:
    return functools.reduce(lax.add, terms)
