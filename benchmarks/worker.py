"""Measuring in another interpreter, by turns with this one: JSON lines over pipes; works on the Python 3.8 that MXNet needs."""

from __future__ import annotations

import json
import os
import pathlib
import select
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


class Ended(RuntimeError):
    """The worker's process ended, or had to be ended, before it answered."""


class Worker:
    """A module of this repository that runs in an interpreter of its own and answers questions.

    Args:
      python: the interpreter.
      module: its name, for example `benchmarks.mxnet_worker`; it must call `serve`.
      environment: variables to set besides those of this process.
    """

    def __init__(self, python, module, **environment):
        self._process: Any = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=str(ROOT),
            env={**os.environ, **environment},
        )

    def ask(self, operation, patience=None, **arguments):
        """Lets the worker call one of its operations.

        Args:
          operation: its name.
          patience: seconds after which a process that has not answered is ended; None waits for ever.
          **arguments: what it takes, as JSON.

        Returns:
          What it returned.

        Raises:
          Ended: the process ended, or was ended.
          RuntimeError: the operation raised.
        """
        try:
            self._process.stdin.write(json.dumps([operation, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Ended(f"the process had ended with status {self._process.wait()}") from None
        # An answer is one line, so that nothing of an earlier one is left in the buffer.
        if patience is not None and not select.select([self._process.stdout], [], [], patience)[0]:
            self.end()
            raise Ended(f"the process was ended, for it had not answered in {patience:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Ended(f"the process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def end(self):
        """Ends the process at once, whatever it does."""
        self._process.kill()
        self._process.wait()

    def close(self):
        """Lets the process end by itself."""
        self._process.stdin.close()
        self._process.wait(timeout=60)


def serve(operations):
    """Answers questions until standard input ends; whatever else the process prints goes to standard error.

    Args:
      operations: functions by name.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        operation, arguments = json.loads(line)
        try:
            answer = {"value": operations[operation](**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def sample(call, seconds):
    """Times a function that returns only when its result is there.

    Args:
      call: the function.
      seconds: how long to go on; one call is made at least.

    Returns:
      The seconds of each call.
    """
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
