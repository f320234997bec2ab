"""What MXNet 1.9.1 answered, recorded under data/; its README says how to read the records."""

import json
from pathlib import Path

import jax
import numpy as np

DATA = Path(__file__).parent / "data"
# The records are hundreds of programs, each run once: ask an older XLA to compile them quickly rather than well.
QUICK: dict = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}


def cases(name):
    """The cases of data/<name>.json."""
    return json.loads((DATA / f"{name}.json").read_text())


def arrays(name):
    """The arrays of data/<name>.npz."""
    with np.load(DATA / f"{name}.npz") as archive:
        return dict(archive)


def by_id(case):
    """A case's id, for pytest."""
    return case["id"]


def assert_close(got, want, rtol, atol, what):
    """`abs(got - want) <= atol + rtol * abs(want)`, and the same shape and dtype."""
    got = np.asarray(got)
    assert (got.shape, got.dtype) == (want.shape, want.dtype), what
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=what)
