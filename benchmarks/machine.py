"""What the benchmark runs on: versions, processor, and its measured peaks."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import time
from typing import Any

import jax
import jax.numpy as jnp


def describe() -> dict[str, Any]:
    """Versions, processor, cores and date."""
    packages = ("jax", "jaxlib", "torch", "numpy", "keras")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "instructions": [name for name in ("avx2", "avx512f", "amx_tile", "asimd", "sve") if name in _cpuinfo().split()],
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "versions": {"python": platform.python_version()} | {name: v for name in packages if (v := _version(name))},
    }


def name() -> str:
    """A short name for result files: device or processor, and cores."""
    what = jax.devices()[0].device_kind if jax.default_backend() != "cpu" else f"{_processor()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")


def peaks() -> dict[str, float]:
    """Measured GFLOP/s of a large float32 matrix product, and GB/s of an update in place of 256 MiB, read and write counted."""
    product = jax.jit(lambda a: a @ a)
    matrix, copy = jnp.ones((3072, 3072), jnp.float32), jnp.ones(1 << 26, jnp.float32)
    # In place, because the pages of a fresh result would be measured too.
    update = jax.jit(lambda a: a + 1, donate_argnums=0)
    products, updates = [], []
    for _ in range(8):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        products.append(time.perf_counter() - start)
        start = time.perf_counter()
        copy = update(copy).block_until_ready()
        updates.append(time.perf_counter() - start)
    return {"gflop_s": 2 * matrix.shape[0] ** 3 / min(products) / 1e9, "gb_s": 2 * copy.nbytes / min(updates) / 1e9}


def _cpuinfo() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _processor() -> str:
    match = re.search(r"^model name\s*: (.*)$", _cpuinfo(), re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
