"""Where the mark holds: nested scopes, decorated functions of every kind, threads, and the whole process."""

import asyncio
import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inspecting import ran
from jax import lax

import jaxgroupconv as jgc
from jaxgroupconv.lowerings import LOWERINGS, Lowering

X = jax.ShapeDtypeStruct((1, 4, 5), jnp.float32)
W = jax.ShapeDtypeStruct((4, 2, 3), jnp.float32)


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2)


def ran_in(f=conv, *args):
    """The planned lowerings of a program, in order."""
    return [name for name in ran(jax.jit(f).lower(*args or (X, W)).as_text()) if name != "native"]


def check_values(f, plain=conv):
    """A function, whose scopes hold here, has the values of one without."""
    x, w = (jnp.sin(jnp.arange(np.prod(a.shape), dtype=a.dtype)).reshape(a.shape) for a in (X, W))
    got = jax.jit(f)(x, w)
    with jgc.accelerate("native"):
        np.testing.assert_allclose(got, jax.jit(plain)(x, w), rtol=1e-5, atol=1e-5)


def held():
    """What holds here, as a conv that is traced now would be lowered."""
    return (ran_in() or ["native"])[0]


def explained(f):
    return [entry.plan.name for entry in jgc.explain(f, X, W).entries]


@pytest.fixture
def computed(monkeypatch):
    """A function that computes with a jitted `conv` and tells what with: `taps` and `matmul` are wrong by known numbers."""
    for name, error in (("taps", 1000), ("matmul", 2000)):

        def wrong(spec, lhs, rhs, error=error):
            return lax.conv_general_dilated(lhs, rhs, **spec.lax_params()) + error

        monkeypatch.setitem(LOWERINGS, name, Lowering(name, lambda spec: None, wrong))
    jax.clear_caches()
    x, w, f = jnp.ones(X.shape), jnp.ones(W.shape), jax.jit(conv)
    expected = f(x, w)
    yield lambda: {0: "native", 1000: "taps", 2000: "matmul"}[int(jnp.max(f(x, w) - expected))]
    jax.clear_caches()  # the wrong lowerings are forgotten


@pytest.fixture(autouse=True)
def nothing_leaks():
    before = held()
    yield
    jgc.disable()
    assert before == held() == "native"


def test_the_innermost_scope_holds():
    with jgc.accelerate():
        assert held() == "taps"
        with jgc.accelerate("native"):
            assert held() == "native"
            with jgc.accelerate("matmul"):
                assert held() == "matmul"
            assert held() == "native"
        assert held() == "taps"


def test_scopes_of_one_program_keep_apart():
    def f(x, w):
        with jgc.accelerate("taps"):
            y = conv(x, w)
        with jgc.accelerate("matmul"):
            y = conv(y, w)
        return conv(y, w)

    def plain(x, w):
        return conv(conv(conv(x, w), w), w)

    assert ran_in(f) == ["taps", "matmul"]
    assert explained(f) == ["taps", "matmul", "native"]
    check_values(f, plain)
    with jgc.accelerate("per_group"):
        assert ran_in(f) == explained(f) == ["taps", "matmul", "per_group"]
        check_values(f, plain)
    gradient, plain_gradient = (jax.grad(lambda x, w, f=f: f(x, w).sum(), 1) for f in (f, plain))
    assert ran_in(gradient).count("matmul") == 3
    check_values(gradient, plain_gradient)


def test_one_scope_is_reusable_and_reentrant():
    scope = jgc.accelerate("matmul")
    with scope, jgc.accelerate("taps"):
        with scope:
            assert held() == "matmul"
        assert held() == "taps"
    with scope:
        assert held() == "matmul"


def test_an_error_leaves_the_scope():
    with pytest.raises(ZeroDivisionError), jgc.accelerate("matmul"):
        _ = 1 / 0
    assert held() == "native"


def test_the_process_and_scopes():
    jgc.enable()
    assert held() == "taps"
    with jgc.accelerate("native"):
        assert held() == "native"
    with jgc.accelerate("matmul"):
        assert held() == "matmul"
    jgc.enable("matmul")
    assert held() == "matmul"
    jgc.disable()
    assert held() == "native"


def test_jitted_functions_follow_a_toggle():
    """Jit's caches, of the function, its gradient and its inner functions, do not outlive `enable` and `disable`."""
    inner = jax.jit(conv)
    f = jax.jit(lambda x, w: inner(x, w))
    x, w = jnp.ones(X.shape), jnp.ones(W.shape)

    def used(f, *args):
        f(*args)  # runs, so that it fills the fast caches
        return "jaxgroupconv_" in f.lower(*args).as_text()

    g = jax.jit(jax.grad(lambda w: f(x, w).sum()))
    for on in (False, True, True, False):
        (jgc.enable if on else jgc.disable)()
        assert used(f, x, w) == used(inner, x, w) == used(g, w) == on


def test_what_runs_follows_a_toggle(computed):
    """What a jitted function returns, a function around it and its gradient, whichever cache it comes from."""
    x, w, inner = jnp.ones(X.shape), jnp.ones(W.shape), jax.jit(conv)
    f, g = jax.jit(lambda x, w: inner(x, w)), jax.jit(jax.value_and_grad(lambda x, w: inner(x, w).sum()))
    expected = float(conv(x, w).sum())

    def check(name, error):
        for _ in range(2):
            assert computed() == name
            for total in (f(x, w).sum(), inner(x, w).sum(), g(x, w)[0], conv(x, w).sum()):
                assert float(total) == expected + error * x.size

    for on in (False, True, False, True):
        (jgc.enable if on else jgc.disable)()
        check(*(("taps", 1000) if on else ("native", 0)))
    with jgc.accelerate("native"):
        check("native", 0)
    check("taps", 1000)
    jgc.disable()
    with jgc.accelerate("matmul"):
        check("matmul", 2000)
    check("native", 0)


def test_a_jitted_function_follows_the_scope_that_calls_it():
    inner = jax.jit(conv)
    assert ran_in(inner) == []
    with jgc.accelerate():
        assert ran_in(inner) == ["taps"]
    assert ran_in(inner) == []


def test_decorators():
    class Net:
        @jgc.accelerate
        def bare(self, x, w):
            """Documented."""
            return conv(x, w)

        @jgc.accelerate("matmul")
        def named(self, x, w):
            return conv(x, w)

        @staticmethod
        @jgc.accelerate("per_group")
        def static(x, w):
            return conv(x, w)

        @classmethod
        @jgc.accelerate("taps")
        def of_class(cls, x, w):
            return conv(x, w)

    assert (Net.bare.__name__, Net.bare.__doc__) == ("bare", "Documented.")
    assert ran_in(Net().bare) == ran_in(Net.of_class) == ["taps"]
    assert ran_in(Net().named) == ["matmul"]
    assert ran_in(Net.static) == ["per_group"]
    outside, inside = jgc.accelerate(jax.jit(conv)), jax.jit(jgc.accelerate(conv))
    assert ran_in(outside) == ran_in(inside) == ["taps"]
    for f in (Net().bare, Net().named, Net.static, Net.of_class, outside, inside):
        check_values(f)


def test_a_generator_runs_each_step_inside():
    @jgc.accelerate("matmul")
    def steps():
        sent = []
        try:
            while len(sent) < 2:
                try:
                    sent.append((yield held()))
                except KeyError:
                    sent.append(f"caught in {held()}")
            return sent
        finally:
            closed.append(held())

    closed = []
    generator = steps()
    assert (next(generator), held()) == ("matmul", "native")
    with jgc.accelerate("taps"):
        assert (generator.send("a"), held()) == ("matmul", "taps")
    with pytest.raises(StopIteration) as stop:
        generator.throw(KeyError())
    assert stop.value.value == ["a", "caught in matmul"]
    generator = steps()
    next(generator)
    generator.close()
    assert closed == ["matmul", "matmul"]
    with pytest.raises(StopIteration):
        next(generator)


def test_async_functions_run_each_step_inside():
    log = []

    @jgc.accelerate("matmul")
    async def marked():
        for _ in range(2):
            log.append(("marked", held()))
            await asyncio.sleep(0)
        return held()

    async def unmarked():
        for _ in range(3):
            log.append(("unmarked", held()))
            await asyncio.sleep(0)

    async def both():
        result, _ = await asyncio.gather(marked(), unmarked())
        return result

    assert asyncio.run(both()) == "matmul"
    assert set(log) == {("marked", "matmul"), ("unmarked", "native")} and len(log) == 5

    @jgc.accelerate("matmul")
    async def cancelled():
        try:
            await asyncio.sleep(60)
        finally:
            log.append(("cancelled", held()))

    async def cancel():
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert log[-1] == ("cancelled", "matmul")


def test_async_generators_run_each_step_inside():
    closed = []

    @jgc.accelerate("matmul")
    async def steps():
        try:
            sent = yield held()
            await asyncio.sleep(0)
            try:
                yield sent + held()
            except KeyError:
                yield f"caught in {held()}"
        finally:
            closed.append(held())

    async def drive():
        generator = steps()
        assert (await anext(generator), held()) == ("matmul", "native")
        assert await generator.asend("a ") == "a matmul"
        assert await generator.athrow(KeyError()) == "caught in matmul"
        assert [item async for item in generator] == []
        generator = steps()
        await anext(generator)
        await generator.aclose()

    asyncio.run(drive())
    assert closed == ["matmul", "matmul"]


def test_threads_have_scopes_of_their_own():
    """Two threads trace one function at the same time, inside different scopes."""
    barrier, found = threading.Barrier(3), {}
    inner = jax.jit(conv)

    def work(name):
        with jgc.accelerate(name) if name else contextlib.nullcontext():
            barrier.wait()
            found[name] = ran_in(inner)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("taps", "matmul", None)]
    with jgc.accelerate("per_group"):  # a new thread does not inherit it
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {"taps": ["taps"], "matmul": ["matmul"], None: []}


def test_what_threads_compute(computed):
    """They call one jitted function at the same time, inside of different scopes."""
    barrier, found = threading.Barrier(3), {}

    def work(name):
        with jgc.accelerate(name):
            barrier.wait()
            found[name] = [computed() for _ in range(20)]

    threads = [threading.Thread(target=work, args=(name,)) for name in ("taps", "matmul", "native")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [name] * 20 for name in ("taps", "matmul", "native")}


def test_what_generators_and_async_functions_compute(computed):
    @jgc.accelerate("matmul")
    def steps():
        yield computed()
        yield computed()

    @jgc.accelerate("taps")
    async def marked():
        first = computed()
        await asyncio.sleep(0)
        return first, computed()

    async def unmarked():
        first = computed()
        await asyncio.sleep(0)
        return first, computed()

    async def both():
        return await asyncio.gather(marked(), unmarked())

    assert [found for step in steps() for found in (step, computed())] == ["matmul", "native"] * 2
    assert asyncio.run(both()) == [("taps", "taps"), ("native", "native")]


def test_the_process_holds_in_every_thread():
    jgc.enable("matmul")
    found = []
    thread = threading.Thread(target=lambda: found.append(held()))
    thread.start()
    thread.join()
    assert found == ["matmul"]


def test_marked_functions_keep_an_outer_choice():
    """`jgc.conv_general_dilated` is planned by itself, and by the scope around it."""

    def f(x, w):
        return jgc.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2)

    assert ran_in(f) == ["taps"]
    with jgc.accelerate("matmul"):
        assert ran_in(f) == ["matmul"]
    with jgc.accelerate("native"):
        assert ran_in(f) == []
    jgc.enable("per_group")
    assert ran_in(f) == ["per_group"]


@pytest.mark.parametrize("use", [jgc.accelerate, jgc.enable])
def test_unknown_implementations_are_errors(use):
    with pytest.raises(
        ValueError, match=r"`implementation` must be one of 'auto', 'portable', 'onednn', 'taps', .*'native', but got 'fast'\."
    ):
        use("fast")


def test_classes_are_not_decorated():
    with pytest.raises(
        TypeError, match="`function` must be a function or method, but got <class .*Decorate the class's methods"
    ):
        jgc.accelerate(type("Net", (), {}))
