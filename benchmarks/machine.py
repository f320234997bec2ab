"""What the benchmark runs on: versions, processor, and its measured peaks."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import time
from collections.abc import Sequence
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


def peaks(dtypes: Sequence[str] = (), size: int | None = None) -> dict[str, Any]:
    """Measures what bounds every row.

    Args:
      dtypes: of rows; on a GPU the matrix rate of each is measured, elsewhere that of float32 only.
      size: of the square matrices; None for 8192 on a GPU, 3072 elsewhere.

    Returns:
      `gflop_s`, of a large float32 matrix product; `gb_s`, of an update in place of 256 MiB, read and write counted;
      `launch_s`, seconds of one of many queued calls that do nothing; and on a GPU `matrix`, GFLOP/s for each dtype.
    """
    on_gpu = jax.default_backend() == "gpu"
    calls = 10 if on_gpu else 1
    size = size or (8192 if on_gpu else 3072)

    # In place, because the pages of a fresh result would be measured too.
    update = jax.jit(lambda a: a + 1, donate_argnums=0)

    def updates(a: jax.Array, count: int) -> tuple[jax.Array, float]:
        start = time.perf_counter()
        for _ in range(count):
            a = update(a)
        a.block_until_ready()
        return a, (time.perf_counter() - start) / count

    def fastest(size: int, count: int) -> float:
        a, _ = updates(jnp.ones(size, jnp.float32), 1)
        best = math.inf
        for _ in range(8):
            a, seconds = updates(a, count)
            best = min(best, seconds)
        return best

    found: dict[str, Any] = {"gflop_s": _matrix_rate("float32", size, calls)}
    found |= {"gb_s": 2 * 4 * (1 << 26) / fastest(1 << 26, calls) / 1e9, "launch_s": fastest(1, 100)}
    if on_gpu:
        found["matrix"] = {dtype: _matrix_rate(dtype, size, calls) for dtype in dtypes}
    return found


def _matrix_rate(dtype: str, n: int, calls: int) -> float | None:
    """GFLOP/s of a product of random n x n matrices; None if there is no such product."""
    operand = {"tf32": "float32", "int8-int8": "int8"}.get(dtype, dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None

    @jax.jit
    def product(a: jax.Array) -> jax.Array:
        return jax.lax.dot(a, a, precision=precision, preferred_element_type="int32" if operand == "int8" else None)

    try:
        with jax.enable_x64(dtype == "float64"):
            a = (8 * jax.random.normal(jax.random.key(0), (n, n), "float32")).astype(operand)
            product(a).block_until_ready()
            seconds = []
            for _ in range(8):
                start, out = time.perf_counter(), a
                for _ in range(calls):
                    out = product(a)
                out.block_until_ready()
                seconds.append((time.perf_counter() - start) / calls)
    except Exception:
        return None
    return 2 * n**3 / min(seconds) / 1e9


def answers() -> bool:
    """Whether the device still computes: after an illegal access in a kernel nothing does any more in this process."""
    try:
        return float(jax.jit(lambda a: a + 1)(jnp.ones((), jnp.float32))) == 2.0
    except Exception:
        return False


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
