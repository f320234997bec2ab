"""Group convolution, from standard convolution to shape inference to speed: a notebook about MXNet, retold in JAX.

python examples/group_convolution.py            # everything, about a minute
python examples/group_convolution.py --quick    # without the timings
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxgroupconv as jgc
from jaxgroupconv.mxnet import nd, sym


def generate_data() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Data (batch, channel, height, width), weight (output channels, input channels, height, width) and bias."""
    return nd.reshape(nd.arange(12), (1, 3, 2, 2)), nd.reshape(nd.arange(6), (2, 3, 1, 1)), nd.zeros(2)


def standard_convolution(data: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Every filter sees all three channels."""
    return nd.Convolution(data, weight=weight, bias=bias, kernel=weight.shape[2:], num_filter=2)


def group_convolution(data: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three groups of one input channel and two filters each; the weight must have the shape (filters, 1, height, width)."""
    reshaped, bias = nd.reshape(weight, (-1, 1, 0, 0)), nd.zeros(6)
    out = nd.Convolution(data, weight=reshaped, bias=bias, kernel=weight.shape[2:], num_filter=6, num_group=3)
    return reshaped, bias, out


def regrouped_convolution(data: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same with the filters that belong to each input channel brought together first."""
    regrouped = nd.reshape(jnp.swapaxes(weight, 0, 1), (-1, 1, 0, 0))
    return regrouped, jgc.group_conv(data, regrouped)  # the number of groups follows from the shapes


def get_symbol(num_group: int = 1) -> sym.Symbol:
    """A convolution with 24 filters as a symbol."""
    data = sym.Variable(name="data")
    return sym.Convolution(data=data, kernel=(3, 3), stride=(1, 1), num_filter=24, num_group=num_group, name="conv")


def infer_output_shape(symbol: sym.Symbol, data_shape: tuple[int, ...]) -> None:
    """Prints the shapes of the parameters and of the feature maps; nothing is computed."""
    arg_shapes, _, aux_shapes = symbol.infer_shape(data=data_shape)
    print("Shape of parameters:")
    for name, shape in zip(symbol.list_arguments(), arg_shapes, strict=True):
        print(f"{name}\t{shape}")
    for name, shape in zip(symbol.list_auxiliary_states(), aux_shapes, strict=True):
        print(f"{name}\t{shape}")
    print("\nShape of feature maps:")
    internals = symbol.get_internals()
    for name in internals.list_outputs():
        if "output" in name:
            layer = internals[name]
            _, out_shapes, _ = layer.infer_shape(data=data_shape)
            print(dict(zip(layer.list_outputs(), out_shapes, strict=True)))


def fastest(functions: dict[str, Callable], *args: jax.Array, rounds: int = 5) -> dict[str, float]:
    """Milliseconds of the fastest of several calls of each function, called by turns."""
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            if turn > 0:  # the first call compiles
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: 1e3 * seconds for name, seconds in best.items()}


def compare_speed(num_group: int, size: int = 256) -> dict[str, dict[str, float]]:
    """Forward pass and gradients of the notebook's convolution, planned here and by lax's own lowering, in milliseconds."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 6, size, size)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((24, 6 // num_group, 3, 3)), jnp.float32)

    def forward(x, w):
        return jgc.group_conv(x, w, groups=num_group)

    def gradient(x, w):
        return jax.grad(lambda x, w: jnp.sum(forward(x, w) ** 2), (0, 1))(x, w)

    times = {}
    for name, function in (("forward", forward), ("gradient", gradient)):
        ours, lax = jax.jit(jgc.accelerate("auto")(function)), jax.jit(jgc.accelerate("native")(function))
        for a, b in zip(jax.tree.leaves(ours(x, w)), jax.tree.leaves(lax(x, w)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(b))))
        times[name] = fastest({"jaxgroupconv": ours, "lax": lax}, x, w)
    return times


def main(quick: bool = False) -> None:
    """Tells the whole story."""
    data, weight, bias = generate_data()
    print(f"# Generate data\n\nInput:\n{data}\n\nWeight:\n{weight}\n\nBias:\n{bias}")
    print(f"\n# Standard convolution\n\nOutput of standard convolution:\n{standard_convolution(data, weight, bias)}")

    reshaped, bias, out = group_convolution(data, weight)
    print(f"\n# Group convolution\n\ndata   shape: {data.shape}\nweight shape: {weight.shape}")
    print(f"\nshape of reshaped weight: {reshaped.shape}\nbias shape: {bias.shape}\n\nGroup convolution output:\n{out}")
    regrouped, out = regrouped_convolution(data, weight)
    print(
        "\nA trap: the reshape reads the weight row by row and does not regroup it by input channel, so channel 0 meets\n"
        f"{reshaped.ravel()[:2]} (filter 0 for channels 0 and 1), not {regrouped.ravel()[:2]} (filters 0 and 1 for channel 0)."
    )
    print(f"\nGroup convolution output, weight regrouped by input channel:\n{out}")

    print("\n# Shape inference\n")
    for num_group in (1, 2, 3, 6):
        print("num-group =", num_group)
        infer_output_shape(get_symbol(num_group), (1, 6, 256, 256))
        print("\n***********************************")

    if quick:
        return
    print("\n# Speed: input (1, 6, 256, 256), 24 filters of 3x3, milliseconds\n")
    print(f"{'num-group':>9}  {'pass':8}  {'jaxgroupconv':>12}  {'lax':>8}  {'lax / jaxgroupconv':>18}")
    for num_group in (1, 2, 3, 6):
        for name, ms in compare_speed(num_group).items():
            ours, lax = ms["jaxgroupconv"], ms["lax"]
            print(f"{num_group:>9}  {name:8}  {ours:12.2f}  {lax:8.2f}  {lax / ours:18.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the timings")
    main(parser.parse_args().quick)
