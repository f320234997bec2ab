"""The plan is a pure function that a person can check by hand, and that wins where the measurements say so."""

import functools

import jax
import jax.numpy as jnp
import pytest
from cases import AVAILABLE, CASES, NHWC, Case

import jaxgroupconv as jgc
from jaxgroupconv import LOWERINGS, cpu_plan, kernel_plan, weight_plan
from jaxgroupconv.planner import IMPLEMENTATIONS, Plan, choose, plan

GROUPED = Case("", (1, 8, 9, 9), (8, 2, 3, 3), groups=4).spec
COMPLEX = Case("", (1, 8, 9, 9), (8, 2, 3, 3), groups=4, dtype="complex64").spec

# Convolutions on which lax is many times slower than what else there is, forward and in both gradients:
# (batch, channels, size, features, kernel, groups, stride).
SLOW_IN_LAX = {
    "ResNeXt stage 2": (1, 128, 56, 128, 3, 32, 1),
    "ResNeXt stage 2, batch": (8, 128, 56, 128, 3, 32, 1),
    "MobileNet, first": (1, 32, 112, 32, 3, 32, 1),
    "MobileNet, batch": (8, 128, 56, 128, 3, 128, 1),
    "MobileNet, stride": (1, 128, 56, 128, 3, 128, 2),
    "MobileNet, 14": (1, 512, 14, 512, 3, 512, 1),
    "MobileNet, 7": (1, 1024, 7, 1024, 3, 1024, 1),
    "ConvNeXt": (1, 96, 56, 96, 7, 96, 1),
    "ConvNeXt, 14": (1, 384, 14, 384, 7, 384, 1),
    "ConvNeXt, batch": (8, 96, 56, 96, 7, 96, 1),
    "depthwise, multiplier": (1, 32, 56, 128, 3, 32, 1),
    "AlexNet": (1, 96, 27, 256, 5, 2, 1),
    "two groups": (1, 6, 256, 24, 3, 2, 1),
    "three groups": (1, 6, 256, 24, 3, 3, 1),
    "six groups": (1, 6, 256, 24, 3, 6, 1),
}

# Those on which lax is many times slower in the weight's gradient.
SLOW_WEIGHT_GRADIENT = SLOW_IN_LAX | {
    "ResNeXt stage 2, stride": (1, 256, 56, 256, 3, 32, 2),
    "ResNeXt stage 3": (1, 256, 28, 256, 3, 32, 1),
    "ResNeXt stage 4": (1, 512, 14, 512, 3, 32, 1),
    "ResNeXt stage 5": (1, 1024, 7, 1024, 3, 32, 1),
    "RegNet": (1, 144, 28, 144, 3, 6, 1),
    "ShuffleNet": (1, 240, 28, 240, 1, 3, 1),
}


def entries(batch, channels, size, features, kernel, groups, stride, channel_last=False):
    """The forward convolution, its gradient with respect to the input and that with respect to the weight, explained.

    Planned without oneDNN's kernels, which have a file of their own (test_onednn.py).
    """

    sizes = (size, size) if isinstance(size, int) else size
    window, spatial = [kernel] * len(sizes), "DHW"[-len(sizes) :]
    layout = f"N{spatial}C" if channel_last else f"NC{spatial}"

    @jgc.accelerate("portable")
    def conv(x, w):
        return jgc.group_conv(x, w, stride=stride, padding=kernel // 2, layout=layout)

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    x = array(batch, *sizes, channels) if channel_last else array(batch, channels, *sizes)
    w = array(*window, channels // groups, features) if channel_last else array(features, channels // groups, *window)
    out = jax.eval_shape(conv, x, w)
    forward, *gradients = jgc.explain(lambda x, w, ct: jax.vjp(conv, x, w)[1](ct), x, w, out).entries
    dx, dw = sorted(gradients, key=lambda entry: entry.spec.out_shape == w.shape)
    assert (forward.spec.out_shape, dx.spec.out_shape, dw.spec.out_shape) == (out.shape, x.shape, w.shape)
    return forward, dx, dw


@pytest.mark.parametrize("shape", SLOW_IN_LAX.values(), ids=SLOW_IN_LAX)
def test_what_lax_is_slow_at_is_planned_forward_and_backward(shape):
    for entry in entries(*shape):
        assert entry.plan.name != "native", f"{entry.spec}: {entry.plan.reason}"


@pytest.mark.parametrize("shape", SLOW_WEIGHT_GRADIENT.values(), ids=SLOW_WEIGHT_GRADIENT)
def test_weight_gradients_that_lax_is_slow_at_are_planned(shape):
    *_, dw = entries(*shape)
    assert dw.plan.name != "native", f"{dw.spec}: {dw.plan.reason}"


@pytest.mark.parametrize("kernel", [(64, 64, 3, 3), (64, 3, 7, 7), (64, 16, 3, 3), (24, 6, 3, 3)], ids=str)
def test_a_dense_convolution_is_left_to_lax(kernel):
    assert plan(Case("", (1, kernel[1], 56, 56), kernel).spec, "cpu").name == "native"


def test_a_dense_kernel_of_size_one_is_a_product():
    assert [entry.plan.name for entry in entries(8, 64, 14, 32, 1, 1, 1)] == ["matmul"] * 3
    assert [entry.plan.name for entry in entries(8, 64, 4, 32, 1, 1, 1)] == ["native", "native", "matmul"]
    forward, dx, _ = entries(1, 64, 2, 64, 1, 1, 1)  # the gradient's kernel is moved, which few positions are not worth
    assert (forward.plan.name, dx.plan.name) == ("matmul", "native")


def test_a_depthwise_kernel_of_size_one_is_left_to_lax():
    """It is one elementwise product there too; its weight gradient is not."""
    assert [entry.plan.name for entry in entries(8, 64, 14, 64, 1, 64, 1)] == ["native", "native", "taps"]


@pytest.mark.parametrize(
    "batch, channels, size, groups, stride, planned",
    [
        (1, 24, 14, 20, 1, ("matmul", "per_group")),  # a gradient's kernel is moved,
        (1, 24, 28, 20, 1, ("matmul", "matmul")),  # which many positions make worth it
        (1, 16, 14, 20, 1, ("matmul", "taps")),
        (1, 16, 56, 20, 1, ("taps", "taps")),
        (1, 16, 28, 8, 1, ("per_group", "per_group")),
        (1, 8, 28, 32, 2, ("matmul", "matmul")),  # strided; the gradient's phases,
        (8, 8, 28, 32, 2, ("matmul", "taps")),  # whose columns are interleaved apart
        (8, 4, 28, 32, 2, ("taps", "taps")),
        (1, 40, 14, 8, 1, ("matmul", "per_group")),
    ],
)
def test_channel_first_many_wide_or_strided_groups_are_products(batch, channels, size, groups, stride, planned):
    forward, dx, _ = entries(batch, groups * channels, size, groups * channels, 3, groups, stride)
    assert (forward.plan.name, dx.plan.name) == planned


@pytest.mark.parametrize(
    "groups, channels, features, planned",
    [(2, 16, 16, "taps"), (3, 8, 8, "taps"), (2, 4, 8, "per_group"), (2, 12, 6, "per_group"), (2, 24, 24, "matmul")],
)
def test_the_weight_gradient_of_few_thin_groups_channel_last(groups, channels, features, planned):
    """A sum where the output channels are whole vectors that the input channels, as many or more, share."""
    assert entries(1, groups * channels, 56, groups * features, 3, groups, 1, channel_last=True)[-1].plan.name == planned


@pytest.mark.parametrize(
    "batch, channels, size, groups, channel_last, planned",
    [
        (8, 24, 28, 8, True, "taps"),
        (8, 32, 28, 8, True, "per_group"),
        (8, 24, 28, 8, False, "matmul"),
        (8, 24, 14, 8, False, "per_group"),  # short rows
        (8, 32, 28, 8, False, "per_group"),
        (1, 32, 28, 8, False, "matmul"),  # one item
        (8, 32, 28, 20, False, "matmul"),  # many groups
    ],
)
def test_the_input_gradient_of_a_strided_convolution(batch, channels, size, groups, channel_last, planned):
    wide = groups * channels
    assert entries(batch, wide, size, wide, 3, groups, 2, channel_last)[1].plan.name == planned


@pytest.mark.parametrize(
    "batch, channels, groups, planned",
    [(4, 32, 8, "per_group"), (2, 32, 8, "matmul"), (4, 24, 8, "matmul"), (4, 32, 20, "matmul")],
)
def test_the_weight_gradient_of_several_items_and_few_wide_groups_is_a_dense_one_for_each(batch, channels, groups, planned):
    assert entries(batch, groups * channels, 14, groups * channels, 3, groups, 1)[-1].plan.name == planned


@pytest.mark.parametrize(
    "batch, channels, planned", [(1, 24, "taps"), (1, 32, "matmul"), (16, 32, "taps"), (16, 48, "taps"), (16, 64, "matmul")]
)
def test_grouped_kernels_of_size_one_are_sums_where_moving_the_groups_costs_more(batch, channels, planned):
    case = Case("", (batch, 28, 28, 4 * channels), (1, 1, channels, 4 * channels), groups=4, layouts=("NHWC", "HWIO", "NHWC"))
    assert plan(case.spec, "cpu").name == planned


@pytest.mark.parametrize("batch, channels, planned", [(1, 32, "matmul"), (16, 32, "per_group"), (16, 64, "matmul")])
def test_the_input_gradient_of_grouped_kernels_of_size_one_channel_last(batch, channels, planned):
    case = Case("", (batch, 28, 28, 4 * channels), (1, 1, 4 * channels, channels), groups=4, layouts=("NHWC", "HWOI", "NHWC"))
    assert plan(case.spec, "cpu").name == planned


@pytest.mark.parametrize("groups", [1, 4])
def test_the_product_of_many_positions_moves_no_operand(groups):
    x, w = jnp.ones((8, 64, 14, 14)), jnp.ones((32, 64 // groups, 1, 1))
    pointwise = jgc.accelerate("matmul")(functools.partial(jgc.group_conv, groups=groups))
    assert "transpose" not in jax.jit(pointwise).lower(x, w).as_text()


@pytest.mark.parametrize(
    "channels, out_channels, kernel, stride, channel_first, channel_last",
    [
        (48, 8, 5, 2, "taps", "taps"),
        (48, 16, 3, 2, "taps", "taps"),
        (2, 16, 3, 2, "taps", "native"),  # fewer than a vector of channels in the result
        (2, 8, 3, 2, "taps", "taps"),
        (48, 24, 3, 2, "native", "native"),
        (48, 16, 2, 2, "matmul", "taps"),  # each input meets results of its own
        (48, 16, 3, 3, "matmul", "matmul"),
        (48, 64, 2, 2, "matmul", "native"),
    ],
)
def test_the_input_gradient_of_a_dense_strided_convolution(channels, out_channels, kernel, stride, channel_first, channel_last):
    shapes = (2, channels, kernel * 18, out_channels, kernel, 1, stride)
    planned = [entries(*shapes, channel_last=last)[1].plan.name for last in (False, True)]
    assert planned == [channel_first, channel_last]


@pytest.mark.parametrize(
    "batch, channels, size, out_channels, kernel, stride, planned",
    [
        (1, 64, 4, 64, 1, 1, "matmul"),  # a kernel of size one
        (2, 64, 112, 8, 3, 1, "per_group"),  # few items and output channels: lax's own, of a padded copy
        (8, 64, 112, 8, 3, 1, "native"),
        (2, 64, 112, 8, 3, 2, "taps"),  # the same, strided
        (2, 3, 112, 16, 3, 2, "matmul"),  # few input channels
        (8, 64, 224, 64, 3, 1, "matmul"),  # a large cotangent
        (1, 6, 112, 24, 3, 1, "native"),
        (1, 6, 112, 40, 3, 1, "matmul"),  # few input channels and many positions
        (1, 6, 112, 24, 5, 2, "matmul"),
        (2, 64, 56, 64, 3, 1, "matmul"),  # few items, but not one
        (1, 64, 56, 64, 3, 1, "native"),
        (1, 64, 56, 64, 3, 2, "matmul"),
        (8, 64, 112, 64, 3, 1, "matmul"),  # large operands
        (8, 3, 112, 8, 3, 1, "native"),
        (8, 64, 56, 64, 3, 1, "matmul"),
        (8, 64, 28, 64, 3, 1, "native"),
        (2, 16, 64, 16, 3, 2, "taps"),
    ],
)
def test_a_dense_weight_gradient_is_left_to_lax_but_where_it_is_slow(
    batch, channels, size, out_channels, kernel, stride, planned
):
    assert entries(batch, channels, size, out_channels, kernel, 1, stride)[-1].plan.name == planned


@pytest.mark.parametrize(
    "channels, out_channels, stride, channel_last, planned",
    [
        (6, 12, 1, True, "per_group"),
        (12, 9, 1, True, "taps"),  # 3 output channels a group
        (6, 12, 1, False, "taps"),
        (24, 12, 1, False, "per_group"),
        (24, 12, 2, False, "taps"),  # strided, lax has a naive loop
        (96, 48, 2, True, "taps"),
        (96, 48, 2, False, "matmul"),
    ],
)
def test_the_weight_gradient_of_few_groups_is_a_dense_one_each_unless_thin_or_strided(
    channels, out_channels, stride, channel_last, planned
):
    _, _, dw = entries(1, channels, 56, out_channels, 3, 3, stride, channel_last)
    assert dw.plan.name == planned


@pytest.mark.parametrize("groups", [1, 2])
def test_lax_computes_weight_gradients_of_few_items_of_a_padded_copy(groups):
    x, w = jnp.ones((1, 28, 28, 8 * groups)), jnp.ones((3, 3, 8, 8 * groups))
    conv = functools.partial(jgc.group_conv, groups=groups, padding="SAME", layout="NHWC")
    text = jax.jit(jgc.accelerate("per_group")(jax.grad(lambda w: conv(x, w).sum()))).lower(w).as_text()
    assert text.count("stablehlo.pad") == 1
    assert text.count("pad = [[0, 0], [0, 0]]") == groups


@pytest.mark.parametrize(
    "batch, size, groups, stride, planned",
    [
        (8, 28, 3, 2, "taps"),
        (8, 28, 3, 1, "taps"),
        (1, 28, 3, 2, "matmul"),  # few positions
        (8, 28, 4, 1, "per_group"),  # channels of 1 KiB: neighbours meet in four sets of the cache
        (8, 28, 4, 2, "taps"),
        (8, 28, 8, 2, "per_group"),
    ],
)
def test_a_wide_weight_gradient_channel_last_is_sums_over_many_positions(batch, size, groups, stride, planned):
    _, _, dw = entries(batch, 64 * groups, size, 64 * groups, 3, groups, stride, channel_last=True)
    assert dw.plan.name == planned


@pytest.mark.parametrize("channels, size, planned", [(11, 28, "taps"), (12, 28, "matmul"), (12, 14, "taps"), (16, 28, "taps")])
def test_the_weight_gradient_of_thin_groups_channel_first_is_sums_if_rows_are_short_or_channels_vectors(
    channels, size, planned
):
    _, _, dw = entries(1, 16 * channels, size, 16 * channels, 3, 16, 1)
    assert dw.plan.name == planned


@pytest.mark.parametrize(
    "batch, size, kernel, planned",
    [(1, 14, 9, "per_group"), (1, 6, 7, "matmul"), (8, 6, 7, "native"), (1, 8, 9, "native"), (8, 2, 3, "native")],
)
def test_a_kernel_larger_than_the_map_is_no_dense_convolution_for_each(batch, size, kernel, planned):
    same = (kernel // 2, kernel // 2)
    case = Case("", (batch, size, size, 384), (kernel, kernel, 48, 384), groups=8, padding=(same, same), layouts=NHWC)
    assert plan(case.spec, "cpu").name == planned


def test_wide_groups_are_products_where_a_group_has_64_channels():
    assert [entry.plan.name for entry in entries(1, 512, 14, 512, 3, 8, 1)] == ["matmul", "per_group", "matmul"]
    assert [entry.plan.name for entry in entries(1, 256, 14, 256, 3, 8, 1)] == ["per_group", "per_group", "matmul"]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_three_dimensions_are_planned_dense_ones_too(groups, stride):
    """lax has a naive loop for every dilation of the input or the kernel, and so for gradients."""
    for entry in entries(1, 64, (8, 14, 14), 64, 3, groups, stride):
        assert entry.plan.name in ("taps", "matmul"), f"{entry.spec}: {entry.plan.reason}"


def test_a_transposed_convolution_of_disjoint_blocks_is_one_product():
    x, w = jnp.ones((1, 32, 7, 7)), jnp.ones((32, 16, 2, 2))
    up = jgc.accelerate(functools.partial(jgc.group_conv_transpose, stride=2))
    [entry] = jgc.explain(up, x, w).entries
    assert entry.spec.disjoint and entry.plan.name == "matmul"
    assert jax.jit(up).lower(x, w).as_text().count("dot_general") == 1


@pytest.mark.parametrize("groups", [1, 4, 32])
@pytest.mark.parametrize("stride", [2, 3])
def test_the_weight_gradient_of_a_transposed_convolution_is_planned_as_that_of_the_strided_one(groups, stride):
    """Which is the same sums, with input and cotangent exchanged: there are no phases, and as many as nine refuse nothing."""
    x, w = jnp.ones((4, 32, 14, 14)), jnp.ones((32, 32 // groups, 5, 5))
    up = functools.partial(jgc.group_conv_transpose, stride=stride, padding=2, groups=groups)
    down = functools.partial(jgc.group_conv, stride=stride, padding=2, groups=groups)

    def weight_gradient(conv, x):
        report = jgc.explain(jgc.accelerate(jax.grad(lambda w: jnp.sum(conv(x, w) ** 2))), w)
        [found] = [entry for entry in report.entries if entry.spec.short_output]
        return found

    dilated, strided = weight_gradient(up, x), weight_gradient(down, up(x, w))
    assert dilated.spec.phases == stride**2 and strided.spec.phases == 1
    assert dilated.plan.name == strided.plan.name and dilated.plan.reason.endswith(strided.plan.reason)


@pytest.mark.parametrize("kernel", [(16, 3, 3, 3), (1, 1, 5, 5), (3, 6, 3, 3)], ids=str)
def test_a_dense_convolution_of_few_channels_is_planned(kernel):
    """The patches that lax makes cost more than the products."""
    assert plan(Case("", (1, kernel[1], 56, 56), kernel).spec, "cpu").name == "taps"


@pytest.mark.parametrize(
    "channels, size, stride, batch, channel_first, channel_last",
    [
        (32, 3, 1, 1, "taps", "taps"),
        (32, 3, 2, 1, "matmul", "taps"),
        (64, 3, 1, 1, "matmul", "taps"),
        (64, 3, 1, 8, "taps", "taps"),
        (32, 3, 2, 8, "native", "taps"),
        (64, 5, 2, 1, "matmul", "native"),
    ],
)
def test_the_first_layer_of_an_image_network_is_planned(channels, size, stride, batch, channel_first, channel_last):
    x, w = (batch, 3, 96, 96), (channels, 3, size, size)
    for layouts, planned in ((("NCHW", "OIHW", "NCHW"), channel_first), (("NHWC", "OIHW", "NHWC"), channel_last)):
        shape = tuple(x["NCHW".index(axis)] for axis in layouts[0])
        assert plan(Case("", shape, w, strides=(stride, stride), layouts=layouts).spec, "cpu").name == planned


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_plan_is_never_refused(case):
    name, reason = (plan(case.spec, "cpu").name, plan(case.spec, "cpu").reason)
    assert LOWERINGS[name].why_not(case.spec) is None and reason


def test_plans_are_pure(monkeypatch):
    """The same spec has the same plan, whatever machine asks, and no device is touched."""
    plan.cache_clear()
    for name in ("devices", "local_devices", "default_backend"):
        monkeypatch.setattr(jax, name, lambda *args: pytest.fail("a device was asked for"))
    first = [plan(case.spec, "cpu") for case in CASES]
    plan.cache_clear()
    assert [plan(case.spec, "cpu") for case in reversed(CASES)] == first[::-1]


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_other_platforms_are_lax_s_until_they_are_measured(platform):
    assert {plan(case.spec, platform) for case in CASES} == {Plan("native", f"nothing is measured on {platform} yet")}


def test_the_docstring_is_the_decision_list():
    doc = plan.__doc__ or ""
    for rules in (kernel_plan.RULES, weight_plan.RULES, cpu_plan.RULES):
        assert len(rules) >= 3
        for i, (_, name, reason) in enumerate(rules, 1):
            assert f"{i}. {reason} -> `{name}`" in doc


def test_every_rule_of_the_list_names_a_lowering():
    assert {name for _, name, _ in kernel_plan.RULES + weight_plan.RULES + cpu_plan.RULES} <= set(LOWERINGS)


def test_a_refused_spec_is_native_and_says_why():
    chosen = plan(COMPLEX, "cpu")
    assert chosen.name == "native" and "dtypes complex64, complex64 -> complex64" in chosen.reason


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_forced_name_is_used_where_it_is_accepted(name):
    accepted = [case.spec for case in CASES if LOWERINGS[name].why_not(case.spec) is None]
    for platform in ("cpu",) if name == "onednn" else ("cpu", "tpu"):
        assert {choose(spec, name, platform) for spec in accepted} == {Plan(name, "asked for")}


@pytest.mark.parametrize("name", [name for name in LOWERINGS if name != "native"])
def test_a_forced_name_that_refuses_gives_way_to_the_plan(name):
    chosen = choose(COMPLEX, name, "cpu")
    assert chosen.name == "native" and chosen.reason.startswith(f"{name} refuses: dtypes complex64, complex64 -> complex64; ")


def test_auto_is_the_plan():
    assert choose(GROUPED, "portable", "cpu") == plan(GROUPED, "cpu")
    assert choose(GROUPED, "auto", "cpu") == plan(GROUPED, "cpu", kernels="onednn" in AVAILABLE)
    assert IMPLEMENTATIONS == ("auto", "portable", *LOWERINGS)


@pytest.mark.parametrize("use", [jgc.accelerate, jgc.enable])
@pytest.mark.parametrize("name", ["fast", "", None, "Taps"])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(use, name):
    known = ", ".join(map(repr, IMPLEMENTATIONS))
    with pytest.raises(ValueError, match=f"`implementation` must be one of {known}, but got {name!r}."):
        use(name)


def test_an_unknown_platform_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="`platform` must be one of cpu, cuda, rocm, tpu, but got 'CPU'"):
        plan(GROUPED, "CPU")
