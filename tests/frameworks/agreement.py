"""A framework's program, unmodified, with the library and without."""

import jax
import numpy as np
from inspecting import recorded

import jaxgroupconv as jgc


def explained(function, *args):
    """What `explain` tells of a framework's program under `jgc.enable()`: (role, lowering) of each grouped convolution."""
    jgc.enable()
    try:
        entries = jgc.explain(function, *args).entries
    finally:
        jgc.disable()
    grouped = [entry for entry in entries if entry.spec.groups > 1]
    assert all(
        entry.marked and entry.source.startswith("test_") for entry in grouped
    )  # a line of the test, not the framework's
    return [(entry.role, entry.plan.name) for entry in grouped]


def agree(program, *, grouped, rtol=1e-4):
    """Runs a program without the library and under `jgc.enable()`.

    Its results, a tree of arrays, must agree to rounding, and `grouped` different grouped convolutions must have been planned,
    none of them as lax's own. Returns their specs.
    """
    expected = jax.tree.map(np.asarray, program())
    with recorded() as plans:
        jgc.enable()
        try:
            got = jax.tree.map(np.asarray, program())
        finally:
            jgc.disable()
    found = {spec: name for spec, name in plans if spec.groups > 1}
    assert len(found) == grouped and "native" not in found.values(), found
    close(got, expected, rtol)
    return list(found)


def close(got, expected, rtol=1e-4):
    """Two trees of arrays agree to rounding."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (np.abs(b).max(initial=0) + 1e-3))
