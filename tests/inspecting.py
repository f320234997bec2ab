"""What a lowered program computes its convolutions with."""

import contextlib
import importlib
import re

import pytest


def ran(text):
    """The convolutions of a StableHLO text in order: the names of planned lowerings, and `native` for each of lax's own.

    A function that is called twice counts once. What stands inside of a planned lowering does not count.
    """
    convolution = r"call @jaxgroupconv_([a-z_]+?)(?:_\d+)?\(|stablehlo\.(convolution|dynamic_conv)\b"
    return ["native" if native else planned for planned, native in re.findall(convolution, outside(text))]


def outside(text):
    """The text without the planned lowerings' functions."""
    functions = re.split(r"\n(?=\s*func\.func)", text)
    return "\n".join(f for f in functions if not re.match(r"\s*func\.func \w* ?@jaxgroupconv_", f))


@contextlib.contextmanager
def recorded():
    """The (spec, lowering) of each equation that is planned meanwhile, for programs whose text is out of reach."""
    module, found = importlib.import_module("jaxgroupconv.accelerate"), []

    def chosen(spec, *args, original=module.chosen):
        plan = original(spec, *args)
        found.append((spec, plan.name))
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "chosen", chosen)
        yield found
