"""Collected where the extra `frameworks` is installed; JAXGROUPCONV_REQUIRE_FRAMEWORKS=1 makes its absence an error."""

import importlib.util
import os

import jax
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it when it is imported

missing = [name for name in ("flax", "equinox", "haiku", "keras", "optax") if importlib.util.find_spec(name) is None]
if missing and os.environ.get("JAXGROUPCONV_REQUIRE_FRAMEWORKS") == "1":
    raise ImportError(f"the extra `frameworks` is required, but {', '.join(missing)} cannot be imported")
collect_ignore_glob = ["test_*.py"] if missing else []


@pytest.fixture(autouse=True)
def their_promotion():
    """The frameworks rely on JAX's usual promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
