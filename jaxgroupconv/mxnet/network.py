"""`to_jax`: a network as a pytree of parameters and a pure function."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxgroupconv.mxnet.channel_last import rewrite
from jaxgroupconv.mxnet.symbol import Symbol

LAYOUTS = ("channel-first", "channel-last")


def to_jax(
    symbol: Symbol,
    arg_params: Mapping[str, Any],
    aux_params: Mapping[str, Any] | None = None,
    *,
    layout: str = "channel-first",
) -> tuple[dict[str, dict[str, jax.Array]], Callable]:
    """Turns a checkpoint into what JAX's own libraries work with.

    Args:
      symbol: the network.
      arg_params: its parameters by name; those that it does not use are dropped.
      aux_params: its auxiliary states by name, likewise.
      layout: "channel-first" keeps the parameters as they are, so that they go back into `save_checkpoint`; "channel-last"
        computes two-dimensional convolutions channel-last, which XLA's CPU code prefers, and holds their weights as
        (h, w, I/G, O). Inputs and outputs are MXNet's in both.

    Returns:
      `variables`, `{"params": {...}, "aux": {...}}`, JAX arrays by name: gradients and optimizers concern the former, the
      latter are BatchNorm's moving averages; and `apply(variables, inputs, *, train=False, rng=None) -> (outputs, new_aux)`,
      a pure function: `inputs` holds data (and in training labels) by name, `outputs` is a list, `new_aux` the moved averages.

    Raises:
      ValueError: if the symbol has auxiliary states that `aux_params` lacks, or for another layout.

    Example:
      >>> variables, apply = to_jax(*load_checkpoint("mobilenet", 0))
      >>> (scores,), _ = jax.jit(apply)(variables, {"data": images})
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, but got {layout!r}.")
    aux_params = aux_params or {}
    states = symbol.list_auxiliary_states()
    if missing := [name for name in states if name not in aux_params]:
        raise ValueError(f"`aux_params` must hold every auxiliary state of the network, but {', '.join(missing)} are missing.")
    params = {name: jnp.asarray(arg_params[name]) for name in symbol.list_arguments() if name in arg_params}
    if layout == "channel-last":
        symbol, weights = rewrite(symbol)
        params |= {name: params[name].transpose(2, 3, 1, 0) for name in weights & params.keys()}
    variables = {"params": params, "aux": {name: jnp.asarray(aux_params[name]) for name in states}}

    def apply(
        variables: Mapping[str, Mapping[str, Any]],
        inputs: Mapping[str, Any],
        *,
        train: bool = False,
        rng: jax.Array | None = None,
    ) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        return symbol.apply({**variables["params"], **inputs}, variables["aux"], train=train, rng=rng)

    return variables, apply
