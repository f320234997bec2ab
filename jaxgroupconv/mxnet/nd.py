"""`nd`: every operator as a function on arrays, `nd.Convolution(data, weight, bias, kernel=(3, 3), num_filter=8)`.

The functions are generated from the operators' table. They take JAX or NumPy arrays, return JAX arrays, and may be jitted,
differentiated and vmapped like any other function of JAX. Attributes are given as MXNet's scripts give them, as values or as
strings. MXNet trains while its autograd records; here an operator that behaves differently in training takes `train=True`, and
`rng=` if it draws random numbers. The moving averages that training updates come from `Symbol.apply`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgroupconv.mxnet import calls, operators  # noqa: F401  (importing the operators fills the table)
from jaxgroupconv.mxnet.registry import Operator


def array(source: Any, dtype: Any = None) -> jax.Array:
    """An array from lists, numbers or another array.

    Args:
      source: anything NumPy can read as an array.
      dtype: None means float32 whatever the source, as in MXNet.
    """
    return jnp.asarray(np.asarray(source), dtype or jnp.float32)


def arange(start: float, stop: float | None = None, step: float = 1.0, repeat: int = 1, dtype: Any = None) -> jax.Array:
    """Numbers from `start` up to `stop`, from 0 up to `start` without a stop; each `repeat` times; float32 by default."""
    return jnp.repeat(jnp.arange(start, stop, step, dtype=dtype or jnp.float32), repeat)


def zeros(shape: int | tuple[int, ...], dtype: Any = None) -> jax.Array:
    """An array of zeros, float32 by default."""
    return jnp.zeros(shape, dtype or jnp.float32)


def ones(shape: int | tuple[int, ...], dtype: Any = None) -> jax.Array:
    """An array of ones, float32 by default."""
    return jnp.ones(shape, dtype or jnp.float32)


def _function(op: Operator, name: str) -> Callable:
    def call(*args: Any, **kwargs: Any) -> jax.Array | tuple[jax.Array, ...]:
        if kwargs.pop("out", None) is not None:
            raise TypeError("`out` must be left out, because JAX arrays cannot be written into. Use the returned array.")
        kwargs.pop("name", None)  # MXNet accepts it here and has no use for it
        mode = {key: kwargs.pop(key) for key in ("train", "rng") if op.stateful and key in kwargs}
        inputs, strings = calls.bind(op, args, kwargs)
        for key, value in inputs.items():
            if not isinstance(value, (jax.Array, np.ndarray)):
                raise TypeError(f"Argument {key} must have NDArray type, but got {value!r}")
        p = op.parse(strings)
        outputs, _ = op(p, [jnp.asarray(value) for value in inputs.values()], **mode)
        outputs = outputs[: len(op.outputs(p))]
        return outputs[0] if len(outputs) == 1 else outputs

    return call


_FUNCTIONS = calls.functions(_function)
globals().update(_FUNCTIONS)
__all__ = ["arange", "array", "ones", "zeros", *_FUNCTIONS]  # pyright: ignore[reportUnsupportedDunderAll]
