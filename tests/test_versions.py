"""A JAX whose internals are others: one clear warning when the library is imported, and lax's behaviour."""

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

MISSING = {  # what is taken away, as an owner's attribute
    "the table of rules": ("jax.interpreters.mlir", "_platform_specific_lowerings"),
    "the table of default rules": ("jax.interpreters.mlir", "_lowerings"),
    "the registration": ("jax.interpreters.mlir", "register_lowering"),
    "the lowering of functions": ("jax.interpreters.mlir", "lower_fun"),
    "the context of rules": ("jax.interpreters.mlir", "LoweringRuleContext"),
    "the module": ("jax.interpreters", "mlir"),
    "the mark": ("jax.experimental.xla_metadata", "set_xla_metadata"),
    "explicit sharding": ("jax.sharding", "auto_axes"),
}


def test_without_each_of_them_and_with_all():
    """What importing does in a fresh process, for each thing that is missing."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reports = dict(line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    assert reports == dict.fromkeys([*MISSING, "a mark that does not arrive"], "as lax") | {"nothing": "planned"}


def without(owner, attribute, name):
    """Imports the library without the attribute, and reports what a marked program does."""
    owner = importlib.import_module(owner)
    value = getattr(owner, attribute)
    delattr(owner, attribute)
    if attribute == "mlir":
        sys.modules[f"{owner.__name__}.{attribute}"] = None  # `from jax.interpreters import mlir` is an ImportError
    try:
        report(name)
    finally:
        setattr(owner, attribute, value)
        if attribute == "mlir":
            sys.modules[f"{owner.__name__}.{attribute}"] = value


def report(name):
    import jax
    import jax.numpy as jnp
    from jax import lax

    for module in [m for m in sys.modules if m.partition(".")[0] == "jaxgroupconv"]:
        del sys.modules[module]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jgc = importlib.import_module("jaxgroupconv")
    messages = [str(w.message) for w in caught if w.category is RuntimeWarning]

    def loss(x, w):
        return jnp.sum(lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2) ** 2)

    x, w = jnp.ones((1, 4, 5)), jnp.ones((4, 2, 3))
    plain = jax.jit(jax.grad(loss, 1)).lower(x, w).as_text()
    texts = []
    with jgc.accelerate("taps"):
        texts.append(jax.jit(jax.grad(loss, 1)).lower(x, w).as_text())
    texts.append(jax.jit(jax.grad(jgc.accelerate(loss), 1)).lower(x, w).as_text())
    jgc.enable("taps")
    texts.append(jax.jit(jax.grad(loss, 1)).lower(x, w).as_text())
    assert jgc.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2).shape == (1, 4, 5)
    jgc.disable()
    if texts == [plain] * 3 and len(messages) == 1 and messages[0].startswith("jaxgroupconv does not know this JAX ("):
        print(name, "as lax", sep="\t")
    elif not messages and all("jaxgroupconv_taps" in text for text in texts):
        print(name, "planned", sep="\t")
    else:
        print(name, f"warnings {messages}, texts as lax's {[text == plain for text in texts]}", sep="\t")


def main():
    import contextlib

    from jax.experimental import xla_metadata

    for name, (owner, attribute) in MISSING.items():
        without(owner, attribute, name)
    mark = xla_metadata.set_xla_metadata
    xla_metadata.set_xla_metadata = lambda **_: contextlib.nullcontext()
    report("a mark that does not arrive")
    xla_metadata.set_xla_metadata = mark
    report("nothing")  # last: from then on the rules are wrapped


if __name__ == "__main__":
    main()
