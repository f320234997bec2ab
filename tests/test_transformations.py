"""JAX's transformations: a marked program is the same function, and all that is derived from its convolutions is planned."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inspecting import outside, ran, recorded
from jax import export, lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import checkify, jet
from jax.experimental.compilation_cache import compilation_cache

import jaxgroupconv as jgc

PLANNED = "taps"  # forced, so that the tests do not depend on the planner's taste for small shapes
X = np.linspace(-1, 1, 2 * 4 * 7, dtype=np.float32).reshape(2, 4, 7) ** 2
W = np.sin(np.arange(4 * 2 * 3, dtype=np.float32)).reshape(4, 2, 3)


def lax_conv(x, w, strides=(1,), padding="SAME", **kwargs):
    return lax.conv_general_dilated(x, w, strides, padding, feature_group_count=2, **kwargs)


def loss(conv, x, w):
    return jnp.sum(jnp.sin(conv(x, w)))


def scaled(conv, x, w):
    """A loss of four numbers, for second derivatives."""
    return lambda s: loss(conv, x, w * s.reshape(4, 1, 1))


def scan(conv, x, w):
    return jnp.sum(lax.scan(lambda x, w: (jnp.sin(conv(x, w)), None), x, jnp.stack([w, 2 * w, w]))[0])


def while_loop(conv, x, w):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(conv(c[1], w))), (0, x))


def cond(conv, x, w):
    return jnp.sum(lax.cond(x[0, 0, 0] > 0, lambda: jnp.sin(conv(x, w)), lambda: x))


def switch(conv, x, w):
    branches = [lambda x: conv(x, w), lambda x: x, lambda x: jnp.sin(conv(x, 2 * w))]
    return jnp.sum(lax.switch(jnp.int32(x[0, 0, 0] * 2), branches, x))


def custom_jvp(conv, x, w):
    @jax.custom_jvp
    def f(x, w):
        return jnp.sin(conv(x, w))

    @f.defjvp
    def f_jvp(primals, tangents):
        y, t = jax.jvp(conv, primals, tangents)
        return jnp.sin(y), 2 * jnp.cos(y) * t  # not the true derivative: the rule is seen to run

    return jnp.sum(f(x, w))


def custom_vjp(conv, x, w):
    @jax.custom_vjp
    def f(x, w):
        return jnp.sin(conv(x, w))

    def backward(residuals, cotangent):
        y, pull = jax.vjp(conv, *residuals)
        return pull(2 * jnp.cos(y) * cotangent)

    f.defvjp(lambda x, w: (f(x, w), (x, w)), backward)
    return jnp.sum(f(x, w))


def pure_callback(conv, x, w):
    y = conv(x, w)
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(y.shape, y.dtype), y, vmap_method="sequential")


def debug_print(conv, x, w):
    jax.debug.print("sum {}", jnp.sum(x), ordered=True)
    return conv(x, w)


def compile_time(conv, x, w):
    with jax.ensure_compile_time_eval():
        constant = conv(jnp.asarray(X), jnp.asarray(W))
    return constant + conv(x, w)


def both(x, w):
    return jnp.stack([x, 2 * x]), jnp.stack([w, w, 3 * w])[:2]


def gradient(f):
    return lambda conv, x, w: jax.grad(functools.partial(f, conv), (0, 1))(x, w)


PROGRAMS = {
    "call": lambda conv, x, w: conv(x, w),
    "jit": lambda conv, x, w: jax.jit(conv)(x, w),
    "grad": gradient(loss),
    "value_and_grad": lambda conv, x, w: jax.value_and_grad(functools.partial(loss, conv), 1)(x, w),
    "grad of jit": gradient(lambda conv, x, w: loss(jax.jit(conv), x, w)),
    "jvp": lambda conv, x, w: jax.jvp(conv, (x, w), (2 * x, 3 * w)),
    "vjp": lambda conv, x, w: jax.vjp(conv, x, w)[1](x),
    "linearize": lambda conv, x, w: jax.linearize(conv, x, w)[1](x, w),
    "linear_transpose": lambda conv, x, w: jax.linear_transpose(lambda x: conv(x, w), x)(x),
    "hessian": lambda conv, x, w: jax.hessian(scaled(conv, x, w))(jnp.ones(4)),
    "forward over reverse": lambda conv, x, w: jax.jvp(jax.grad(functools.partial(loss, conv), 1), (x, w), (x, w)),
    "reverse over reverse": lambda conv, x, w: jax.grad(lambda w: jnp.sum(gradient(loss)(conv, x, w)[0] ** 2))(w),
    "vmap over inputs": lambda conv, x, w: jax.vmap(conv, (0, None))(*both(x, w)[:1], w),
    "vmap over weights": lambda conv, x, w: jax.vmap(conv, (None, 0))(x, both(x, w)[1]),
    "vmap over both": lambda conv, x, w: jax.vmap(conv, (1, 0), 2)(x[:, None].repeat(2, 1), both(x, w)[1]),
    "per-example gradients": lambda conv, x, w: jax.vmap(jax.grad(functools.partial(loss, conv), 1), (0, None))(x[:, None], w),
    "ensemble": lambda conv, x, w: jax.vmap(jax.grad(functools.partial(loss, conv), (0, 1)), (None, 0))(x, both(x, w)[1]),
    "scan": scan,
    "grad of scan": gradient(scan),
    "while_loop": while_loop,
    "fori_loop": lambda conv, x, w: lax.fori_loop(0, 3, lambda i, x: jnp.sin(conv(x, w)), x),
    "cond": cond,
    "grad of cond": gradient(cond),
    "switch": switch,
    "vmap of cond": lambda conv, x, w: jax.vmap(lambda x: cond(conv, x, w))(both(x, w)[0]),
    "map": lambda conv, x, w: lax.map(lambda x: conv(x, w), both(x, w)[0]),
    "grad of remat": gradient(lambda conv, x, w: loss(jax.checkpoint(lambda x, w: conv(jnp.sin(conv(x, w)), w)), x, w)),
    "custom_jvp": custom_jvp,
    "grad of custom_jvp": gradient(custom_jvp),
    "custom_vjp": custom_vjp,
    "grad of custom_vjp": gradient(custom_vjp),
    "jet": lambda conv, x, w: jet.jet(lambda x: jnp.sin(conv(x, w)), (x,), ((x, 2 * x),)),
    "pure_callback": pure_callback,
    "debug.print": debug_print,
    "ensure_compile_time_eval": compile_time,
    "channel-last": gradient(
        lambda conv, x, w: jnp.sum(
            conv(x.mT, w.transpose(2, 1, 0), (2,), [(2, 0)], rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC"))
        )
    ),
    "dilated input": gradient(lambda conv, x, w: jnp.sum(conv(x, w, (1,), [(1, 1)], lhs_dilation=(2,)) ** 2)),
}


@pytest.fixture
def default_flags():
    """Undoes what a test sets of JAX's configuration."""
    names = ("jax_enable_checks", "jax_remat3", "jax_custom_vjp3", "jax_compilation_cache_dir")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def check_program(name):
    """The program is the same when marked, and every convolution that lax would compute is planned."""

    def trace(conv, mark=None):
        f = functools.partial(PROGRAMS[name], conv)
        return jax.jit(jgc.accelerate(mark)(f) if mark else f).lower(X, W)

    unmarked, marked = trace(lax_conv), trace(lax_conv, PLANNED)
    natives = ran(unmarked.as_text())
    assert set(natives) == {"native"}
    assert ran(marked.as_text()) == [PLANNED] * len(natives)
    inner = trace(jgc.accelerate(PLANNED)(lax_conv))
    assert ran(inner.as_text()) == [PLANNED] * len(natives)
    entries = jgc.explain(jgc.accelerate(PLANNED)(functools.partial(PROGRAMS[name], lax_conv)), X, W).entries
    assert len(entries) >= len(natives) and {entry.plan.name for entry in entries} == {PLANNED}
    expected = unmarked.compile()(X, W)
    for program in [marked, inner] if "custom" in name else [marked]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * (1 + np.max(np.abs(b)))),
            program.compile()(X, W),
            expected,
        )


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    check_program(name)


def test_all_implementations_of_remat_and_custom_vjp(default_flags):
    """JAX has two of each, and traces other programs with the one than with the other."""
    traced = set()
    for remat3, custom_vjp3 in itertools.product((False, True), repeat=2):
        jax.config.update("jax_remat3", remat3)
        jax.config.update("jax_custom_vjp3", custom_vjp3)
        for name in ("grad of remat", "grad of custom_vjp"):
            check_program(name)
        block = jax.checkpoint(functools.partial(custom_vjp, lax_conv), policy=jax.checkpoint_policies.dots_saveable)
        traced.add(str(jax.make_jaxpr(block)(X, W)))
        if remat3 == custom_vjp3:
            check_policy(jax.checkpoint_policies.nothing_saveable, recomputed=1)
            check_policy(
                jax.checkpoint_policies.dots_saveable
            )  # JAX 0.10's other remat recomputes one, with and without the mark
    assert len(traced) == 4


def policies():
    """Every built-in checkpoint policy; those that are made from something, made from the name `y`."""
    made = {
        "save_anything_except_these_names": lambda make: make("y"),
        "save_any_names_but_these": lambda make: make("y"),
        "save_only_these_names": lambda make: make("y"),
        "save_from_both_policies": lambda make: make(
            jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names("y")
        ),
        "offload_dot_with_no_batch_dims": lambda make: make("device", "pinned_host"),
        "save_and_offload_only_these_names": lambda make: make(
            names_which_can_be_saved=["y"], names_which_can_be_offloaded=[], offload_src="device", offload_dst="pinned_host"
        ),
    }
    for name, policy in vars(jax.checkpoint_policies).items():
        if not name.startswith("_"):
            yield name, made[name](policy) if name in made else policy


def block(x, w):
    y = checkpoint_name(lax_conv(jnp.sin(x), w), "y")
    return jnp.sum(jnp.sin(jnp.sin(y) @ jnp.ones((y.shape[-1], 3))))


def check_policy(policy, recomputed=None):
    """The marked program has as many convolutions and other products as the unmarked one, and its values."""
    f = jax.value_and_grad(jax.checkpoint(block, policy=policy), (0, 1))
    lowered = [jax.jit(g).lower(X, W) for g in (f, jgc.accelerate(PLANNED)(f))]
    unmarked, marked = (program.as_text() for program in lowered)
    count = len(ran(unmarked))
    assert ran(marked) == [PLANNED] * count
    assert recomputed is None or count == 3 + recomputed
    assert outside(unmarked).count("dot_general") == outside(marked).count("dot_general") > 0
    expected = jax.value_and_grad(block, (0, 1))(X, W)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), lowered[1].compile()(X, W), expected)


POLICIES = dict(policies())
RECOMPUTED = {"everything_saveable": 0, "nothing_saveable": 1, "dots_saveable": 0}


@pytest.mark.parametrize("name", POLICIES)
def test_remat_policies_recompute_what_they_would_for_lax(name):
    check_policy(POLICIES[name], RECOMPUTED.get(name))


def test_the_policies_are_found():
    assert set(RECOMPUTED) < set(POLICIES) and len(POLICIES) >= 10


def test_checkify_reports_a_nan():
    checked = checkify.checkify(jgc.accelerate(PLANNED)(lax_conv), errors=checkify.float_checks)
    lowered = jax.jit(checked).lower(X, W)
    assert ran(lowered.as_text()) == [PLANNED]
    error, _ = lowered.compile()(np.full_like(X, np.inf), W)
    with pytest.raises(checkify.JaxRuntimeError, match="nan generated by primitive: conv_general_dilated"):
        error.throw()
    error, y = lowered.compile()(X, W)
    error.throw()
    np.testing.assert_allclose(y, lax_conv(X, W), rtol=1e-5, atol=1e-6)


def test_debug_nans():
    f = jax.jit(jgc.accelerate(PLANNED)(lax_conv))
    with jax.debug_nans(True):
        assert ran(f.lower(X, W).as_text()) == [PLANNED]
        np.testing.assert_allclose(f(X, W), lax_conv(X, W), rtol=1e-5, atol=1e-6)
        with pytest.raises(FloatingPointError, match="nan"):
            f(np.full_like(X, np.inf), W)


@pytest.mark.parametrize("name", ["grad", "vmap over both", "grad of scan", "grad of remat", "grad of custom_vjp"])
def test_internal_checks_pass(name, default_flags):
    jax.config.update("jax_enable_checks", True)
    f = functools.partial(PROGRAMS[name], lax_conv)
    lowered = jax.jit(jgc.accelerate(PLANNED)(f)).lower(X, W)
    assert set(ran(lowered.as_text())) == {PLANNED}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), lowered.compile()(X, W), f(X, W))


def test_64_bit_mode(x64):
    lowered = {
        mark: jax.jit(jgc.accelerate(mark)(functools.partial(PROGRAMS["grad"], lax_conv))).lower(*map(np.float64, (X, W)))
        for mark in ("native", PLANNED)
    }
    assert ran(lowered[PLANNED].as_text()) == [PLANNED] * 3
    expected, got = (f.compile()(*map(np.float64, (X, W))) for f in lowered.values())
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_without_jit():
    jax.clear_caches()  # a convolution that ran before would not be planned again
    with recorded() as plans, jgc.accelerate(PLANNED):
        y, grads = lax_conv(X, W), PROGRAMS["grad"](lax_conv, X, W)
        with jax.disable_jit():
            z = lax_conv(2 * X, W)
    assert {name for _, name in plans} == {PLANNED}
    assert len({spec for spec, _ in plans}) == 3  # the convolution and its two gradients
    np.testing.assert_allclose(y, lax_conv(X, W), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z, lax_conv(2 * X, W), rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, PROGRAMS["grad"](lax_conv, X, W))


def test_what_is_computed_while_tracing_is_planned():
    x = X[:, :, :5]  # of a shape of its own, so that nothing has computed it before

    def f():
        with jax.ensure_compile_time_eval():
            return jnp.sin(lax_conv(x, W))

    with recorded() as plans, jgc.accelerate(PLANNED):
        jaxpr = jax.make_jaxpr(f)()
    assert [name for _, name in plans] == [PLANNED]
    assert not jaxpr.eqns
    np.testing.assert_allclose(jaxpr.consts[0], jnp.sin(lax_conv(x, W)), rtol=1e-5, atol=1e-6)


def test_what_is_printed(capfd):
    f = jax.jit(jgc.accelerate(PLANNED)(functools.partial(debug_print, lax_conv)))
    assert ran(f.lower(X, W).as_text()) == [PLANNED]
    f(X, W).block_until_ready()
    jax.effects_barrier()
    assert capfd.readouterr().out == f"sum {jnp.sum(X)}\n"


def test_pmap():
    f = jax.pmap(jgc.accelerate(PLANNED)(lambda x: lax.psum(lax_conv(x, W), "i")), axis_name="i")
    with recorded() as plans:
        y = f(X[None])[0]
    assert [name for _, name in plans] == [PLANNED]
    np.testing.assert_allclose(y, lax_conv(X, W), rtol=1e-5, atol=1e-6)


def test_donated_buffers():
    f = jax.jit(jgc.accelerate(PLANNED)(lax_conv), donate_argnums=0)
    assert ran(f.lower(X, W).as_text()) == [PLANNED]
    x = jnp.asarray(X)
    np.testing.assert_allclose(f(x, W), lax_conv(X, W), rtol=1e-5, atol=1e-6)
    assert x.is_deleted()


def test_lowering_for_other_platforms():
    """An accelerator's lowering can be inspected here; it has the plan of its own platform."""
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        text = jax.jit(jgc.accelerate(lax_conv)).trace(X, W).lower(lowering_platforms=(platform,)).as_text()
        (entry,) = jgc.explain(jgc.accelerate(lax_conv), X, W, platform=platform).entries
        assert ran(text) == [entry.plan.name]


def test_export_to_four_platforms_and_back():
    platforms = ("cpu", "cuda", "rocm", "tpu")
    f = jax.jit(jgc.accelerate(PLANNED)(functools.partial(loss, lax_conv)))
    exported = export.export(f, platforms=platforms)(X, W)
    assert set(ran(exported.mlir_module())) == {PLANNED}
    again = export.deserialize(exported.serialize(vjp_order=1))
    assert again.platforms == platforms
    np.testing.assert_allclose(jax.jit(again.call)(X, W), loss(lax_conv, X, W), rtol=1e-5)
    got, expected = jax.grad(again.call, 1)(X, W), jax.grad(functools.partial(loss, lax_conv), 1)(X, W)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_export_with_symbolic_sizes_is_laxs():
    """A plan needs numbers; where batch or length are symbols, the convolution is lax's own."""
    x = jax.ShapeDtypeStruct(export.symbolic_shape("b, 4, s"), np.float32)
    exported = export.export(jax.jit(jgc.accelerate(lax_conv)), platforms=("cpu", "cuda", "rocm", "tpu"))(x, W)
    assert set(ran(exported.mlir_module())) == {"native"}
    again = export.deserialize(exported.serialize(vjp_order=1))
    for shape in ((2, 4, 7), (3, 4, 5)):
        x = np.resize(X, shape)
        np.testing.assert_allclose(again.call(x, W), lax_conv(x, W), rtol=1e-5, atol=1e-6)
        got, expected = (jax.grad(functools.partial(loss, f), (0, 1))(x, W) for f in (again.call, lax_conv))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_the_persistent_cache_keeps_marked_programs_apart(tmp_path, default_flags):
    expected = np.asarray(lax_conv(X, W))  # before there is a cache on disk
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    try:

        def files(*marks):
            for mark in marks:
                jax.clear_caches()
                with recorded() as plans:
                    y = jax.jit(jgc.accelerate(mark)(lax_conv) if mark else lax_conv)(X, W)
                assert [name for _, name in plans] == ([mark] if mark else [])
                np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
            return sorted(path.name for path in tmp_path.iterdir() if path.name.endswith("-cache"))

        planned = files(PLANNED)
        of_all = files("native", "matmul", None)
        assert (len(planned), len(of_all)) == (1, 4)
        assert files(PLANNED, "native", "matmul", None) == of_all  # the same texts again: nothing new
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
        compilation_cache.reset_cache()
