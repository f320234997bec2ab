"""What weight gradients as sums are made of: blocks of products added up elementwise, then products with ones.

XLA:CPU compiles a reduction into a scalar loop. Elementwise sums of blocks of the items of c and of the window's rows are a
vector loop, and a product with ones is one too.
"""

import dataclasses
import math
from typing import Any

from jax import Array, lax

from jaxgroupconv.lowerings.geometry import VECTOR, align, contract, divisor, pieces, spread, take, total, without
from jaxgroupconv.spec import ConvSpec

ROW_TERMS = 8  # products added up elementwise before a reduction
WINDOW_TERMS = 10  # the same along a minor window
MORE_ROW_TERMS = 14  # of depthwise ones, or wide channels; XLA does not fuse a gather with more than 15 slices
PRODUCTS = 128  # terms times innermost channels; with less, LLVM unrolls the loop over these
STORED = 2  # products that take as long as to write a sum and to read it again
TWICE = 2  # rows of ones, minor channels: of one, XLA would write a kernel for each product anew, and compile each
FEW = 14  # sums that are added up elementwise, and not by a product


def depthwise(spec: ConvSpec) -> bool:
    """Whether a weight gradient is that of one input and one output channel a group (here `n` and `o`)."""
    return spec.batch == spec.out_channels == 1


def block(spec: ConvSpec) -> tuple[int, int]:
    """The items of c and the rows of a block, such that there are about `ROW_TERMS` blocks, or some more.

    A block's rows are as far apart as there are blocks of them: the terms of a sum are neighbours, which read much of the same.
    So a depthwise one has blocks of rows before it has blocks of items.
    """
    items, height = spec.in_channels, spec.window[0]
    wide, scalars = spec.batch * spec.out_channels > 16 * 16, _scalars(spec)
    most = WINDOW_TERMS if spec.lhs_layout.endswith(spec.spatial) else ROW_TERMS
    if depthwise(spec) or wide or scalars:
        most = MORE_ROW_TERMS
    if depthwise(spec):
        of_rows = _even(height, most)
        of_items = divisor(items, max(1, most // of_rows))
    elif scalars:
        of_items, of_rows = _most(items, height, most)
    else:
        of_items = divisor(items, most)
        of_rows = _even(height, max(1, most // of_items))
    return items // of_items, -(-height // of_rows)


def terms(spec: ConvSpec) -> int:
    """The number of blocks, whose products are the terms of a sum."""
    items, rows = block(spec)
    return spec.in_channels // items * -(-spec.window[0] // rows)


def even_rows(spec: ConvSpec) -> ConvSpec:
    """The same with a few more rows of the window, and of the input, such that all blocks have equally many.

    XLA would fill up a shorter one within its sum, where it then picks each element of a vector. See also `row_parts`.
    """
    height = spec.window[0]
    _, rows = block(spec)
    missing = -height % rows
    return dataclasses.replace(
        spec,
        window=(height + missing, *spec.window[1:]),
        in_size=(spec.in_size[0] + missing * spec.rhs_dilation[0], *spec.in_size[1:]),
    )


def row_parts(spec: ConvSpec) -> list[tuple[int, ConvSpec]]:
    """Some rows of the window after the other, such that all blocks have equally many: the first one of each, and its spec."""
    height = spec.window[0]
    _, rows = block(spec)
    count = -(-height // rows)
    whole = height // count * count
    sizes = {0: whole, whole: height - whole}
    return [(row, dataclasses.replace(spec, window=(size, *spec.window[1:]))) for row, size in sizes.items() if size]


def sums_layout(spec: ConvSpec) -> str:
    """The layout of the sums of blocks: the input's, with o beside n, and k, the positions, or, channel-first, r and k.

    They read the operands again for each position: best from the cache, so positions are within an item and, channel-last, a
    column. Channel-first they are rows, one at a time, and columns; those of depthwise ones are one axis too.
    """
    axes, positions = spec.lhs_layout.replace("n", innermost(spec)), f"c{spec.spatial}"
    if spec.lhs_layout.endswith(spec.spatial):
        return axes.replace("0", "k0" if depthwise(spec) else "rk0")
    within = axes.startswith(positions)
    return f"{positions}k{axes.removeprefix(positions)}" if within else f"k{axes}"


def innermost(spec: ConvSpec) -> str:
    """The order of n and o in the sums of minor channels: of which LLVM makes vectors, as measured.

    That is o; or n, if that is more than o, which are less than a vector, or no whole vectors, where o are one.
    """
    n, o = spec.batch, spec.out_channels
    swapped = (o < min(VECTOR, n) and n != VECTOR) or (o == VECTOR and n % VECTOR > 0)
    return "on" if swapped and n > 1 and not spec.lhs_layout.endswith(spec.spatial) else "no"


def kept_axes(spec: ConvSpec) -> str:
    """The layout of the sums once they are reduced."""
    return "".join(axis for axis in sums_layout(spec) if axis not in "c" + spec.spatial)


def operands_size(spec: ConvSpec) -> int:
    """How many elements both operands have, of one group and item of c."""
    return spec.batch * math.prod(spec.in_size) + spec.out_channels * math.prod(spec.window)


def sums_shape(spec: ConvSpec, positions: int = 1) -> list[int]:
    """The shape of the sums of so many output positions, in the layout of `sums_layout`."""
    items, rows = block(spec)
    sizes = spec.sizes(spec.window) | {"r": 1, "k": positions, "c": items, "0": rows}
    return [sizes[axis] for axis in sums_layout(spec)]


def sums_size(spec: ConvSpec) -> int:
    """How many elements the sums of one output position have, of one group."""
    return spec.batch * spec.out_channels * math.prod((*block(spec), *spec.window[1:]))


def blocks(spec: ConvSpec, array: Array, axes: str, positions: int = 1) -> list[Array]:
    """An operand's blocks, of so many windows of the input, or of `rhs`, in the layout of `sums_layout`.

    The operand is spread along the axes that it lacks before it is cut: XLA's passes take time for each operation. Axes of
    length one are left out, but not of a depthwise one: its windows are a gather, which would take 1.2 to 1.7 times as long.
    """
    layout, sizes = sums_layout(spec), spec.sizes(spec.window) | {"r": 1, "k": positions, "c": spec.in_channels}
    kept = layout if depthwise(spec) else "".join(axis for axis in layout if axis in "c0" or sizes[axis] > 1)
    array = without(array, axes, "".join(axis for axis in axes if axis not in kept))
    own = "".join(axis for axis in axes if axis in kept)
    axes = "".join(axis for axis in kept if axis in own or sizes[axis] == 1)
    array = spread(align(array, own, axes), axes, kept, sizes)
    items, rows = block(spec)
    count = spec.window[0] // rows
    of_items = [slice(item, item + items) for item in range(0, spec.in_channels, items)]
    return [take(array, kept, c=some, s0=slice(row, None, count)) for some in of_items for row in range(count)]


def blocks_summed(spec: ConvSpec, windows: list[Array], rhs: list[Array], positions: int = 1) -> Array:
    """The products of blocks, one added to the other, in the layout of `sums_layout`."""
    return lax.reshape(total(list(map(lax.mul, windows, rhs))), sums_shape(spec, positions))


def reduced(spec: ConvSpec, sums: Array) -> Array:
    """The sums of blocks summed up, in the layout of `kept_axes`. Axes that devices may share out are not merged."""
    return once(spec, multiplied(spec, sums))


def multiplied(spec: ConvSpec, sums: Array) -> Array:
    """The same as products with ones, or few ones added up, in the layout of `_multiplied_axes`; `once` takes one of each."""
    axes = sums_layout(spec)
    sums, sizes = lax.optimization_barrier(sums), dict(zip(axes, sums.shape, strict=True)) | {"x": TWICE}
    options: Any = {"merge": depthwise(spec), "precision": lax.Precision.HIGHEST}

    def ones(letters: str) -> Array:
        return lax.full([sizes[axis] for axis in letters], 1, sums.dtype)

    if not axes.endswith(spec.spatial):
        batch, summed = "k" if axes.startswith("k") else "", "".join(axis for axis in axes if axis in "c" + spec.spatial)
        if _few_sums(spec):
            return without(total(pieces(sums, axes, summed)), axes, summed)
        sums, axes = contract(ones(f"{batch}x{summed}"), f"{batch}x{summed}", sums, axes, batch=batch, **options)
        return _aligned(sums, axes, _multiplied_axes(spec), sizes)
    sums, axes = contract(sums, axes, ones(spec.spatial), spec.spatial, **options)
    if 1 < sizes["c"] <= FEW:
        sums, sizes["c"] = total(pieces(sums, axes, "c")), 1
    elif sizes["c"] > 1:
        sums, axes = contract(ones("c"), "c", sums, axes, **options)
    return _aligned(sums, axes, _multiplied_axes(spec), sizes)


def once(spec: ConvSpec, products: Array) -> Array:
    """One of each that `multiplied` gives twice, in the layout of `kept_axes`."""
    axes, kept = _multiplied_axes(spec), kept_axes(spec)
    if "x" in axes:
        products, axes = lax.squeeze(take(products, axes, x=0), [axes.index("x")]), axes.replace("x", "")
    return align(products, axes, kept)


def _multiplied_axes(spec: ConvSpec) -> str:
    """The layout of the products with ones: channel-last there are two of each, along x, lest XLA write a kernel for each."""
    axes, kept = sums_layout(spec), kept_axes(spec)
    if axes.endswith(spec.spatial) or _few_sums(spec):
        return kept
    return f"kx{kept.replace('k', '')}" if axes.startswith("k") else f"x{kept}"


def _few_sums(spec: ConvSpec) -> bool:
    """Whether a block has so few sums that, of wider groups, adding them up is one more vector loop."""
    return not depthwise(spec) and math.prod((*block(spec), *spec.window[1:])) <= FEW


def _aligned(sums: Array, axes: str, target: str, sizes: dict[str, int]) -> Array:
    """Sums with these axes, some of which may be merged or of length one, in a layout."""
    found = "".join(axis for axis in axes if axis in target)
    return align(lax.reshape(sums, [sizes[axis] for axis in found]), found, target)


def _scalars(spec: ConvSpec) -> bool:
    """Whether LLVM would make scalars of the loop over minor channels, with `ROW_TERMS`, and not with more."""
    if spec.lhs_layout.endswith(spec.spatial):
        return False
    few, many = sorted((spec.batch, spec.out_channels)) if innermost(spec) == "on" else (spec.batch, spec.out_channels)
    return ROW_TERMS < PRODUCTS / many <= MORE_ROW_TERMS or (many == VECTOR and few % VECTOR > 0)


def _most(items: int, height: int, at_most: int) -> tuple[int, int]:
    """How many blocks of items and of rows are the most together, and of as few items as that takes."""
    parts = [(i, -(-height // -(-height // (at_most // i)))) for i in range(1, min(items, at_most) + 1) if items % i == 0]
    return max(parts, key=math.prod)


def _even(number: int, at_most: int) -> int:
    """How many parts of `number` to add up: a divisor of more than half of the bound, or what adds and stores the least."""
    at_most = min(number, at_most)
    if 2 * (even := divisor(number, at_most)) > at_most:
        return even
    return min(range(at_most, at_most // 2, -1), key=lambda parts: -(-number // parts) * (parts + STORED))
