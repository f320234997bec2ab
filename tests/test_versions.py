"""A JAX whose internals are others: one clear warning, and lax's behaviour."""

import contextlib
import dataclasses
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path

GONE = object()


def with_another_parameter(make_jaxpr):
    """A `make_jaxpr` of a JAX whose convolution has a parameter that nobody has heard of."""

    def make(function):
        def trace(*args):
            jaxpr = make_jaxpr(function)(*args)
            for eqn in jaxpr.jaxpr.eqns:
                eqn.params["algorithm"] = None
            return jaxpr

        return trace

    return make


def without_equations_context(context):
    fields = [field.name for field in dataclasses.fields(context) if field.name != "jaxpr_eqn_ctx"]
    return dataclasses.make_dataclass("LoweringRuleContext", fields, namespace={"replace": context.replace})


OTHERS = {  # an owner's attribute, and what stands in its place: nothing, or something made from it
    "the table of rules": ("jax.interpreters.mlir", "_platform_specific_lowerings", GONE),
    "the table of default rules": ("jax.interpreters.mlir", "_lowerings", GONE),
    "the registration": ("jax.interpreters.mlir", "register_lowering", GONE),
    "constants": ("jax.interpreters.mlir", "ir_constant", GONE),
    "traces": ("jax.core", "Trace", GONE),
    "the current trace": ("jax.extend.core", "set_current_trace", GONE),
    "the text's functions": ("jax.extend.mlir.dialects.func", "CallOp", GONE),
    "the context of rules": ("jax.interpreters.mlir", "LoweringRuleContext", GONE),
    "a field of that context": ("jax.interpreters.mlir", "LoweringRuleContext", without_equations_context),
    "the module": ("jax.interpreters", "mlir", GONE),
    "the mark": ("jax.experimental.xla_metadata", "set_xla_metadata", GONE),
    "a mark that does not arrive": (
        "jax.experimental.xla_metadata",
        "set_xla_metadata",
        lambda _: lambda **_: contextlib.nullcontext(),
    ),
    "explicit sharding": ("jax.sharding", "auto_axes", GONE),
    "one more parameter": ("jax", "make_jaxpr", with_another_parameter),
    # These two the rules ask for only when they run.
    "types of values": ("jax", "typeof", GONE),
    "the devices": (
        "jax.interpreters.mlir:ModuleContext",
        "axis_context",
        lambda _: property(fset=lambda *_: None),
    ),
}


def test_each_of_them_and_none():
    """What happens in a fresh process, for each thing that is another."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reports = dict(line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    assert reports == dict.fromkeys(OTHERS, "as lax") | {"nothing": "planned"}


def exchanged(owner, attribute, make):
    """Reports what a marked program does where the attribute is another."""
    owner = pkgutil.resolve_name(owner)
    value = getattr(owner, attribute)
    delattr(owner, attribute)
    if make is not GONE:
        setattr(owner, attribute, make(value))
    elif attribute == "mlir":
        sys.modules[f"{owner.__name__}.{attribute}"] = None  # `from jax.interpreters import mlir` is an ImportError
    try:
        return report()
    finally:
        setattr(owner, attribute, value)
        if attribute == "mlir":
            sys.modules[f"{owner.__name__}.{attribute}"] = value


def report():
    """Imports the library and asks for its lowerings in all ways."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def loss(x, w):
        return jnp.sum(lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2) ** 2)

    def lower(f):
        text = jax.jit(jax.grad(f, 1)).lower(x, w).as_text()
        mark = r'mhlo\.frontend_attributes = \{jaxgroupconv = "\w+"\}'
        return re.sub(rf" \{{{mark}\}}|{mark}, ", "", text)

    x, w = jnp.ones((1, 4, 5)), jnp.ones((4, 2, 3))
    plain = lower(loss)
    for module in [m for m in sys.modules if m.partition(".")[0] == "jaxgroupconv"]:
        del sys.modules[module]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jgc = importlib.import_module("jaxgroupconv")
        with jgc.accelerate("taps"):
            texts = [lower(loss)]
        texts.append(lower(jgc.accelerate(loss)))
        jgc.enable("taps")
        texts.append(lower(loss))
        assert jgc.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2).shape == (1, 4, 5)
        explained = {(e.plan.name, e.plan.reason.partition(" (")[0]) for e in jgc.explain(loss, x, w).entries}
        jgc.disable()
    messages = [str(w.message) for w in caught if w.category is RuntimeWarning]
    if texts == [plain] * 3 and explained == {("native", "this JAX is not known")} and len(messages) == 1:
        return "as lax" if messages[0].startswith("jaxgroupconv does not know this JAX (") else messages[0]
    if not messages and all("jaxgroupconv_taps" in text for text in texts) and explained == {("taps", "asked for")}:
        return "planned"
    return f"warnings {messages}, texts as lax's {[text == plain for text in texts]}, {explained}"


if __name__ == "__main__":
    for name, other in OTHERS.items():
        print(name, exchanged(*other), sep="\t")
    print("nothing", report(), sep="\t")
