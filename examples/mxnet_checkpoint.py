"""An MXNet checkpoint in JAX: prediction, the shapes of its layers, and fine-tuning; MXNet itself is not needed.

    python examples/mxnet_checkpoint.py                                   # a small ResNeXt that comes with the tests
    python examples/mxnet_checkpoint.py PREFIX EPOCH --data 1,3,224,224   # a checkpoint of yours

Fine-tuning needs optax: pip install optax.
"""

import argparse
import functools
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxgroupconv as jgc
from jaxgroupconv import mxnet
from jaxgroupconv.mxnet.sym import Symbol

RECORDED = Path(__file__).parents[1] / "tests" / "mxnet" / "data" / "networks" / "resnext_small"


def predict(prefix: str, epoch: int, images: jax.Array) -> jax.Array:
    """The network's first output for a batch of images."""
    symbol, arg_params, aux_params = mxnet.load_checkpoint(prefix, epoch)
    variables, apply = mxnet.to_jax(symbol, arg_params, aux_params)
    # Convolutions of `mxnet` are planned in any case; with this, so is every other one that is traced along with them.
    outputs, _ = jax.jit(jgc.accelerate(apply))(variables, {"data": images})
    return outputs[0]


def print_shapes(symbol: Symbol, shape: tuple[int, ...]) -> None:
    """Every layer with its output's shape, from the shape of the data alone: nothing is computed."""
    internals = symbol.get_internals()
    for name, found in zip(internals.list_outputs(), internals.infer_shape(data=shape)[1], strict=True):
        print(f"{name:<24}{found}")


def fine_tune(
    prefix: str, epoch: int, features: str, images: jax.Array, labels: jax.Array, steps: int, save_as: str
) -> list[float]:
    """Trains the network on a few images and saves it as a checkpoint.

    Args:
      prefix: the checkpoint to start from.
      epoch: its epoch.
      features: the inner output that holds the classes' scores, before the softmax.
      images: (N, C, H, W).
      labels: (N,), whole numbers.
      steps: how many steps to take.
      save_as: the prefix of the new checkpoint; it gets the next epoch.

    Returns:
      The loss before each step.
    """
    import optax

    whole, arg_params, aux_params = mxnet.load_checkpoint(prefix, epoch)
    # MXNet's SoftmaxOutput contains its loss; cut before it, the network goes with any loss of JAX's.
    variables, apply = mxnet.to_jax(whole.get_internals()[features], arg_params, aux_params)
    params, aux = variables["params"], variables["aux"]
    optimizer = optax.sgd(0.02, momentum=0.9)

    def loss(params, aux):
        (scores,), aux = apply({"params": params, "aux": aux}, {"data": images}, train=True, rng=jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean(), aux

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    @jgc.accelerate
    def step(params, aux, state):
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, aux)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), aux, state, value

    state, losses = optimizer.init(params), []
    for _ in range(steps):
        params, aux, state, value = step(params, aux, state)
        losses.append(float(value))
    mxnet.save_checkpoint(save_as, epoch + 1, whole, params, aux)
    return losses


def main() -> None:
    """Runs all of it on the network that comes with the tests, or the first two parts on another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prefix", nargs="?", help="the path up to -symbol.json and -0000.params")
    parser.add_argument("epoch", nargs="?", type=int, default=0)
    parser.add_argument("--data", default="4,3,32,32", help="the input's shape")
    options = parser.parse_args()
    shape = tuple(int(size) for size in options.data.split(","))
    images = jax.random.normal(jax.random.key(0), shape)
    with tempfile.TemporaryDirectory() as folder:
        prefix = options.prefix or recorded(folder)
        symbol, _, _ = mxnet.load_checkpoint(prefix, options.epoch)
        print(f"Layers of {Path(prefix).name}:")
        print_shapes(symbol, shape)
        print("\nPrediction:")
        print(predict(prefix, options.epoch, images))
        if not options.prefix:
            print("\nFine-tuning, loss before every eighth step:")
            labels = jnp.arange(len(images)) % 7
            tuned = f"{folder}/tuned"
            # Enough steps for the moving averages to arrive: they keep nine tenths in each.
            losses = fine_tune(prefix, 0, "fc_output", images, labels, steps=48, save_as=tuned)
            print([round(loss, 3) for loss in losses[::8]])
            print("\nClasses predicted by the new checkpoint, and those that were taught:")
            print(predict(tuned, 1, images).argmax(1), labels)


def recorded(folder: str) -> str:
    """The recorded network as a checkpoint in a folder."""
    shutil.copy(RECORDED / "symbol.json", f"{folder}/resnext_small-symbol.json")
    shutil.copy(RECORDED / "resnext_small-0000.params", folder)
    return f"{folder}/resnext_small"


if __name__ == "__main__":
    main()
