"""A ResNeXt block trained on many devices: the batch shared out, then the groups, then both.

python examples/distributed.py              # on eight virtual devices of this machine's CPU
python examples/distributed.py --real       # on the devices that JAX finds

Nothing of the program is particular to this library but `jgc.enable()`: the arrays carry the sharding, and JAX does the rest.
The groups of a grouped convolution never meet, so neither a shared batch nor shared groups need communication in the forward
pass.
"""

import argparse
import functools
import os
import re

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--real", action="store_true", help="use the devices that JAX finds")
parser.add_argument("--steps", type=int, default=5)
arguments = parser.parse_args()
if not arguments.real:  # JAX reads this when it is imported
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import jaxgroupconv as jgc  # noqa: E402

BATCH, CHANNELS, WIDTH, GROUPS, SIZE = 16, 32, 64, 16, 14


def block(params, x):
    """Reduce, convolve in groups, expand, add."""
    y = jax.nn.relu(pointwise(x, params["reduce"]))
    y = jax.nn.relu(grouped(y, params["grouped"]))
    return x + pointwise(y, params["expand"])


def pointwise(x, w):
    return jnp.einsum("nchw,oc->nohw", x, w)


def grouped(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=GROUPS)


def backward(x, w, cotangent):
    return jax.vjp(grouped, x, w)[1](cotangent)


def loss(params, x, target):
    return jnp.mean((block(params, x) - target) ** 2)


@functools.partial(jax.jit, donate_argnums=0)
def step(params, x, target):
    value, grads = jax.value_and_grad(loss)(params, x, target)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), value


def train(batch_devices, group_devices):
    """Trains a few steps on a grid of devices; prints the losses and the grouped convolution's communication."""
    mesh = jax.make_mesh((batch_devices, group_devices), ("batch", "groups"), axis_types=(AxisType.Auto,) * 2)
    shard = lambda array, *axes: jax.device_put(array, NamedSharding(mesh, P(*axes)))  # noqa: E731
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {  # the groups' channels are the block's inner channels
        "reduce": shard(normal(WIDTH, CHANNELS) / CHANNELS**0.5, "groups"),
        "grouped": shard(normal(WIDTH, WIDTH // GROUPS, 3, 3) / (9 * WIDTH / GROUPS) ** 0.5, "groups"),
        "expand": shard(normal(CHANNELS, WIDTH) / WIDTH**0.5, None, "groups"),
    }
    x, target = (shard(normal(BATCH, CHANNELS, SIZE, SIZE), "batch") for _ in range(2))
    inner = shard(normal(BATCH, WIDTH, SIZE, SIZE), "batch", "groups")
    forward = communication(jax.jit(grouped), inner, params["grouped"])
    gradient = communication(jax.jit(backward), inner, params["grouped"], inner)
    losses = []
    for _ in range(arguments.steps):
        params, value = step(params, x, target)
        losses.append(float(value))
    print(f"{batch_devices} x {group_devices} (batch x groups)")
    plans = ", ".join(entry.plan.name for entry in jgc.explain(backward, inner, params["grouped"], inner).entries)
    print(f"  grouped convolution: forward {forward}, gradients {gradient}")
    print(f"  computed by {plans}")
    print("  loss: " + " ".join(f"{value:.4f}" for value in losses))
    return losses


def communication(function, *args):
    """The collectives of a compiled function."""
    text = function.lower(*args).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return ", ".join(re.findall(rf"= (?:\([^)]*\)|\S+) ({kinds})(?:-start)?\(", text)) or "no communication"


if __name__ == "__main__":
    jgc.enable()
    count = jax.device_count()
    grids = [(1, 1), (count, 1), (1, count), (count // 2, 2)] if count > 1 else [(1, 1)]
    runs = [train(*grid) for grid in grids]
    assert all(np.allclose(losses, runs[0], rtol=1e-4) for losses in runs), "the grids must agree"
    print(f"{len(grids)} ways to share the work, the same losses")
