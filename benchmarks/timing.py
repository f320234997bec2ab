"""Timing by turns, and the result files."""

from __future__ import annotations

import itertools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

SLOW = 1.0  # seconds; a call that takes longer is timed once
MOST_QUEUED = 100  # calls between two waits


def sampler(call: Callable, wait: Callable, arguments: Sequence, queue: float = 0.0) -> Callable[[float], list[float]]:
    """A function that times `call(*arguments[i])` for about so many seconds, taking the argument sets in turn.

    Args:
      call: what is timed.
      wait: called with the last result, returns when it is there.
      arguments: argument tuples; more than one if they shall not stay in a cache.
      queue: seconds of work to queue between two waits, on a device whose queue hides the host; 0 waits after every call.

    Returns:
      The function; it returns the seconds of single calls, each the mean of the calls between two waits.
    """
    cycle = itertools.cycle(arguments)
    inner = 0 if queue else 1

    def block(calls: int) -> float:
        out, start = None, time.perf_counter()
        for _ in range(calls):
            out = call(*next(cycle))
        wait(out)
        return (time.perf_counter() - start) / calls

    def sample(seconds: float) -> list[float]:
        nonlocal inner
        times, end = [], time.perf_counter() + seconds
        if not inner:
            once = block(1)
            inner = max(1, min(MOST_QUEUED, round(queue / once)))
            times += [once] if inner == 1 else []
        while not times or time.perf_counter() < end:
            times.append(block(inner))
        return times

    return sample


def alternate(
    samplers: dict[str, Callable[[float], list[float]]], first: dict[str, float], *, seconds: float, rounds: int
) -> dict[str, dict[str, Any]]:
    """Times candidates by turns, so that a slow minute of the machine meets all of them.

    Args:
      samplers: for each name a function that measures for about so many seconds and returns the times of single calls.
      first: seconds of a call that was made before; if it was slow it is the only one.
      seconds: time for all together.
      rounds: how often each has its turn; a candidate that has used up its share sits out, but not before three calls.

    Returns:
      For each name `min_s`, `median_s` and the number of `calls`; or `failed`, the error that it raised.
    """
    times = {name: [first[name]] if first[name] > SLOW else [] for name in samplers}
    fast, share = [name for name in samplers if not times[name]], seconds / rounds / max(1, len(samplers))
    failed = {}
    for turn in range(rounds):
        shift = turn % max(1, len(fast))
        for name in fast[shift:] + fast[:shift]:
            if name not in failed and (len(times[name]) < 3 or sum(times[name]) < share * (turn + 1)):
                try:
                    times[name] += samplers[name](share)
                except Exception as error:
                    failed[name] = {"failed": describe(error)}
    done = {name: t for name, t in times.items() if name not in failed}
    return failed | {n: {"min_s": min(t), "median_s": statistics.median(t), "calls": len(t)} for n, t in done.items()}


def describe(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {str(error)[:300]}"


def command() -> list[str]:
    """This program's arguments, for a result's head; of absolute paths, which belong to the machine, only the names."""
    return [path.name if (path := pathlib.Path(word)).is_absolute() else word for word in sys.argv[1:]]


def write(path: pathlib.Path, head: dict[str, Any], measurements: list[dict[str, Any]]) -> None:
    """Writes a result file, one measurement a line, replacing the old file only once the new one is whole.

    Args:
      path: the file; its folder is made if need be.
      head: what holds for all measurements.
      measurements: the rest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    lines = ",\n".join(json.dumps(measurement) for measurement in measurements)
    part.write_text(json.dumps(head, indent=1)[:-2] + f',\n "measurements": [\n{lines}\n]}}\n')
    part.replace(path)
