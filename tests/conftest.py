"""The strict test world: warnings are errors (pyproject.toml), dtypes and ranks are never promoted silently."""

import os

# Compiling is most of the suite's time, and what is tested depends neither on how far LLVM optimises, nor on how many
# parts it splits a program into. Before JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """64-bit mode for one test."""
    with jax.enable_x64(True):
        yield
