"""Keras 3 on JAX: fit, predict, its grouped layers, and a network of keras.applications."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from agreement import agree, explained
from keras import layers

pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning")  # Keras asks JAX 0.12 for it


def images(*shape):
    return np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def test_fit_and_predict():
    def train():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                layers.Input((8, 8, 8)),
                layers.Conv2D(16, 3, groups=4, padding="same"),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Dropout(0.1),
                layers.DepthwiseConv2D(3, depth_multiplier=2),
                layers.SeparableConv2D(8, 3, strides=2, padding="same"),
                layers.Reshape((9, 8)),
                layers.DepthwiseConv1D(3),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3),
            ]
        )
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = model.fit(images(16, 8, 8, 8), np.arange(16) % 3, batch_size=8, epochs=2, verbose=0, shuffle=False)
        return (
            history.history["loss"],
            [jnp.array(v.value) for v in model.weights],
            model.predict(images(8, 8, 8, 8), verbose=0),
        )

    specs = agree(train, grouped=11, rtol=1e-3)
    assert {spec.ndim for spec in specs} == {1, 2}


@functools.cache
def mobilenet():
    keras.utils.set_random_seed(0)
    return keras.applications.MobileNet((32, 32, 3), alpha=0.25, weights=None, classes=5)


def gradient(last):
    """The gradient of MobileNet in training, up to a layer, and its arguments."""
    model = keras.Model(mobilenet().input, mobilenet().get_layer(last).output)
    state = [[v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables)]

    def loss(trainable, fixed, x):
        return (model.stateless_call(trainable, fixed, x, training=True)[0] ** 2).sum()

    return jax.value_and_grad(loss), (*state, images(2, 32, 32, 3))


def test_an_application():
    function, args = gradient("conv_pw_3_relu")  # its first blocks, since they are compiled
    agree(lambda: jax.jit(function)(*args), grouped=9)


def test_explain():
    function, args = gradient("predictions")
    found = explained(function, *args)
    assert [role for role, _ in found].count("forward") == 13  # MobileNet's depthwise layers
    assert {role for role, _ in found} == {"forward", "dx", "dw"}
    assert "native" not in {name for _, name in found}
