"""What a lowered program computes its convolutions with."""

import contextlib
import importlib
import re

import pytest


def ran(text):
    """The convolutions of a StableHLO text in order: the names of planned lowerings, and `native` for each of lax's own.

    A function that is called twice counts once. What stands inside of a planned lowering does not count.
    """
    convolution = r"call @jaxgroupconv_(\w+?)(?:_\d+)?\(|stablehlo\.(convolution|dynamic_conv)\b"
    return ["native" if native else planned for planned, native in re.findall(convolution, outside(text))]


def outside(text):
    """The text without the planned lowerings' functions, and those that only they call."""
    head, *functions = re.split(r"\n(?=\s*func\.func)", text)
    bodies = {re.search(r"@(\w+)", function)[1]: function for function in functions}
    kept, found = {}, [name for name in bodies if name == "main"]
    while found:
        name = found.pop()
        if name in bodies and name not in kept and not name.startswith("jaxgroupconv_"):
            kept[name] = bodies[name]
            found += re.findall(r"call @(\w+)", bodies[name])
    return "\n".join([head, *(body for name, body in bodies.items() if name in kept)])


@contextlib.contextmanager
def recorded():
    """The (spec, lowering) of each equation that is planned meanwhile, for programs whose text is out of reach."""
    module, found = importlib.import_module("jaxgroupconv.rules"), []

    def choose(spec, *args, original=module.choose):
        plan = original(spec, *args)
        found.append((spec, plan.name))
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "choose", choose)
        yield found
