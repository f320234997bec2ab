"""Benchmarks; run each as a module from the root of the repository: `python -m benchmarks.run`."""

import os

# PyTorch's and MXNet's OpenMP threads spin after a call and slow down whatever runs next. Must be set before either is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# On a GPU, JAX would take three quarters of the memory at its start, and PyTorch needs its share.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
