"""A function of any kind inside a context manager: generators and coroutines step by step."""

import functools
import inspect
import types
from collections.abc import Callable, Generator
from typing import Any


def inside(context: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run inside a reusable context manager.

    Of a generator, a coroutine or an asynchronous generator, each step runs inside, and whoever runs while it waits is outside.

    Args:
      context: a context manager that can be entered many times.
      function: a function or method of any kind.

    Returns:
      A function of the same kind.

    Raises:
      TypeError: it is a class.
    """
    if inspect.isclass(function):
        raise TypeError(f"`function` must be a function or method, but got {function!r}. Decorate the class's methods.")
    if inspect.isasyncgenfunction(function):
        wrapper = _async_generator(context, function)
    elif inspect.iscoroutinefunction(function):
        wrapper = _coroutine(context, function)
    elif inspect.isgeneratorfunction(function):
        wrapper = _generator(context, function)
    else:
        wrapper = _function(context, function)
    return functools.wraps(function)(wrapper)


def _function(context: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*args, **kwargs):
        with context:
            return function(*args, **kwargs)

    return marked


def _generator(context: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*args, **kwargs):
        return (yield from _steps(context, function(*args, **kwargs)))

    return marked


def _coroutine(context: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    async def marked(*args, **kwargs):
        return await _awaited(context, function(*args, **kwargs))

    return marked


def _async_generator(context: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    async def marked(*args, **kwargs):
        items = function(*args, **kwargs)
        step = items.asend(None)
        try:
            while True:
                item = await _awaited(context, step)
                try:
                    step = items.asend((yield item))
                except Exception as error:
                    step = items.athrow(error)
        except StopAsyncIteration:
            return
        finally:
            await _awaited(context, items.aclose())

    return marked


def _steps(context: Any, steps: Any) -> Generator[Any, Any, Any]:
    """Runs a generator or an awaitable, each step inside; whoever runs while it waits does not see it."""
    step, value = steps.send, None
    while True:
        with context:
            try:
                item = step(value)
            except StopIteration as end:
                return end.value
        try:
            step, value = steps.send, (yield item)
        except GeneratorExit:
            with context:
                steps.close()
            raise
        except BaseException as error:
            step, value = steps.throw, error


@types.coroutine
def _awaited(context: Any, steps: Any) -> Generator[Any, Any, Any]:
    return (yield from _steps(context, steps))
