"""The ways to compute a row that are compared: this library and lax here, PyTorch in `peers.py`, MXNet in `mxnet_peer.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxgroupconv as jgc
from benchmarks.row import Row
from benchmarks.timing import sampler

ON_GPU = jax.default_backend() == "gpu"
# The name under which the planner knows what is measured here; the backend's own name is `gpu` for two platforms.
PLATFORM = ("rocm" if "rocm" in jax.devices()[0].client.platform_version else "cuda") if ON_GPU else jax.default_backend()
QUEUE = 2e-3 if ON_GPU else 0.0  # seconds of work between two waits, which cost some ten microseconds each
MAX_SEPARATE_GROUPS = 8
MOST_COMPILED = 4  # times, of which the fastest counts


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute a row, compiled and ready to run.

    Attributes:
      sample: measures for about so many seconds; returns the seconds of single calls, of at least one.
      result: runs once and returns the result as float64 in the row's layout.
      facts: what there is to say besides times: seconds of compilation, bytes of temporary memory, the lowering.
    """

    sample: Callable[[float], list[float]]
    result: Callable[[], np.ndarray]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def jax_candidate(row: Row, mode: str, copies: int, implementation: str | None = None, separate: bool = False) -> Candidate:
    """This library, or lax.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      copies: sets of operands to take in turn; more than one if they shall not stay in the cache.
      implementation: for `jgc.accelerate`; None for lax as it is.
      separate: write a transposed convolution as one `lax.conv_transpose` for each group.

    Returns:
      The candidate, compiled.

    Raises:
      NotImplementedError: the named lowering refuses this row, or there is no such program for it.
    """
    if separate and (row.form != "transpose" or not 1 < row.groups <= MAX_SEPARATE_GROUPS):
        raise NotImplementedError("not a transposed convolution of few groups")
    with contextlib.ExitStack() as scope:
        scope.enter_context(jax.enable_x64(row.dtype == "float64"))
        if ON_GPU and row.dtype == "float32":
            scope.enter_context(jax.default_matmul_precision("highest"))
        if implementation is not None:
            scope.enter_context(jgc.accelerate(implementation))
        sets = _sets(row, copies)
        conv = _separate_transpose if separate else lax_conv if implementation is None else _jgc_conv
        facts = {} if implementation is None else _lowering(program(row, mode, conv), sets[0], implementation)
        compiled, seconds = _compile(lambda: program(row, mode, conv), sets[0])
        facts |= {"compile_s": seconds, "temp_bytes": compiled.memory_analysis().temp_size_in_bytes}
        facts["program"] = _digest(compiled.as_text())
    return Candidate(
        sample=sampler(compiled, jax.block_until_ready, sets, QUEUE),
        result=lambda: np.asarray(compiled(*sets[0])).astype(np.float64),
        facts=facts,
    )


@functools.lru_cache(maxsize=1)  # the candidates and modes of a row share them
def _sets(row: Row, copies: int) -> list[tuple[jax.Array, ...]]:
    first = tuple(jnp.array(array, row.operand_dtype) for array in row.operands())
    return [first] + [tuple(map(jnp.copy, first)) for _ in range(copies - 1)]


def program(row: Row, mode: str, conv: Callable[[Row, jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """A function of input, kernel and cotangent.

    Args:
      row: the layer.
      mode: `fwd`, `dx` or `dw`.
      conv: computes the row's convolution of one member of an ensemble, such as `lax_conv`.

    Returns:
      The function; of an ensemble or of per-example gradients, the batched one.
    """

    def one(x: jax.Array, w: jax.Array, ct: jax.Array) -> jax.Array:
        if mode == "fwd":
            return conv(row, x, w)
        if mode == "dx":
            return jax.vjp(lambda x: conv(row, x, w), x)[1](ct)[0]
        return jax.vjp(lambda w: conv(row, x, w), w)[1](ct)[0]

    if row.form == "ensemble":
        return jax.vmap(one)
    if row.form == "per_example":
        return lambda x, w, ct: jax.vmap(one, (0, None, 0))(x[:, None], w, ct[:, None])
    return one


def _compile(program: Callable[[], Callable], arguments: Sequence[jax.Array]) -> tuple[Any, float]:
    """Compiles from nothing; again while that takes long enough to matter, since another process may have been in the way.

    Once on a GPU, where XLA remembers what it has found out about convolutions and products, and so would for the second time.
    """
    compiled, seconds = None, []
    while not seconds or (len(seconds) < MOST_COMPILED and 0.3 < min(seconds) < 5 and not ON_GPU):
        jax.clear_caches()
        start = time.perf_counter()
        compiled = jax.jit(program()).lower(*arguments).compile()
        seconds.append(time.perf_counter() - start)
    return compiled, min(seconds)


def _digest(text: str) -> str:
    """Of what XLA runs, without the names of where it comes from: equal programs differ in nothing but the machine's noise."""
    text = re.sub(r", (metadata|frontend_attributes)=\{[^{}]*\}", "", text)
    return hashlib.sha1(text[text.index("\n%" if "\n%" in text else "\nENTRY") :].encode()).hexdigest()


def _lowering(program: Callable, arguments: Sequence[jax.Array], implementation: str) -> dict[str, Any]:
    """Names the lowering of the program's last convolution: before a gradient stands the forward pass, which is dead."""
    entry = jgc.explain(program, *arguments, platform=PLATFORM).entries[-1]
    if implementation not in ("auto", "portable", entry.plan.name):
        raise NotImplementedError(entry.plan.reason)
    return {"lowering": entry.plan.name, "reason": entry.plan.reason, "spec": str(entry.spec)}


def _kernel_layout(row: Row) -> str:
    k = "DHW"[3 - row.ndim :] if row.ndim > 1 else "W"
    return f"{k}IO" if row.channel_last else f"OI{k}"


def lax_conv(row: Row, x: jax.Array, w: jax.Array) -> jax.Array:
    """The row as one `lax.conv_general_dilated`."""
    strides, padding, lhs_dilation = row.stride, row.padding, None
    if row.form == "transpose":
        strides, lhs_dilation, padding, w = (1,) * row.ndim, row.stride, _transposed_padding(row), _regroup(row, w)
    return lax.conv_general_dilated(
        x,
        w,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=row.dilation,
        dimension_numbers=(row.layout, _kernel_layout(row), row.layout),
        feature_group_count=row.groups,
        preferred_element_type=row.result_dtype if row.dtype == "int8" else None,
    )


def _jgc_conv(row: Row, x: jax.Array, w: jax.Array) -> jax.Array:
    if row.form != "transpose":
        return lax_conv(row, x, w)
    return jgc.group_conv_transpose(
        x,
        w,
        groups=row.groups,
        stride=row.stride,
        padding=row.padding[0][0],
        output_padding=row.output_padding,
        dilation=row.dilation,
        layout=row.layout,
    )


def _separate_transpose(row: Row, x: jax.Array, w: jax.Array) -> jax.Array:
    features, inputs = (-1, -1) if row.channel_last else (1, 0)
    return jnp.concatenate(
        [
            lax.conv_transpose(
                x_g,
                w_g,
                row.stride,
                _transposed_padding(row),
                rhs_dilation=row.dilation,
                dimension_numbers=(row.layout, _kernel_layout(row), row.layout),
                transpose_kernel=True,
            )
            for x_g, w_g in zip(jnp.split(x, row.groups, features), jnp.split(w, row.groups, inputs), strict=True)
        ],
        features,
    )


def _transposed_padding(row: Row) -> list[tuple[int, int]]:
    return [
        ((k - 1) * d - lo, (k - 1) * d - hi + extra)
        for k, d, (lo, hi), extra in zip(row.kernel, row.dilation, row.padding, row.output_padding, strict=True)
    ]


def _regroup(row: Row, w: jax.Array) -> jax.Array:
    """The kernel of the equivalent convolution: flipped, and (C, O/G) of each group exchanged."""
    g, c, o = row.groups, row.channels // row.groups, row.features // row.groups
    w = jnp.flip(w, range(row.ndim) if row.channel_last else range(2, w.ndim))
    if row.channel_last:
        return w.reshape(*row.kernel, o, g, c).swapaxes(-1, -3).reshape(*row.kernel, c, g * o)
    return w.reshape(g, c, o, *row.kernel).swapaxes(1, 2).reshape(g * o, c, *row.kernel)
