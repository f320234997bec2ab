"""Building symbols: names, attributes, composition, arithmetic, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgroupconv.mxnet import MXNetError, nd, sym


def convolution(name="conv", **attributes):
    return sym.Convolution(sym.Variable("data"), kernel=(3, 3), num_filter=4, name=name, **attributes)


def test_missing_inputs_become_variables_that_inherit_the_attributes():
    symbol = sym.BatchNorm(convolution(num_group=2, __mood__="calm"), name="bn")
    assert symbol.list_arguments() == ["data", "conv_weight", "conv_bias", "bn_gamma", "bn_beta"]
    assert symbol.list_auxiliary_states() == ["bn_moving_mean", "bn_moving_var"]
    assert symbol.list_inputs() == [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    assert symbol.attr_dict() == {
        **dict.fromkeys(
            ("conv_weight", "conv_bias", "conv"),
            {"kernel": "(3, 3)", "num_filter": "4", "num_group": "2", "__mood__": "calm"},
        ),
        "bn_moving_mean": {"__init__": '["zero", {}]'},
        "bn_moving_var": {"__init__": '["one", {}]'},
    }
    assert symbol.get_children()["conv_output"].attr("num_group") == "2"
    assert (symbol.attr("eps"), symbol.list_attr()) == (None, {})


def test_automatic_names_count_up():
    first, second = (int(sym.relu(sym.Variable("x")).name.removeprefix("relu")) for _ in range(2))
    assert second == first + 1


def test_outputs_and_how_to_pick_them():
    parts = sym.SliceChannel(sym.Variable("x"), num_outputs=2, name="parts")
    group = sym.Group([convolution(), parts])
    assert group.list_outputs() == ["conv_output", "parts_output0", "parts_output1"]
    assert [each.list_outputs() for each in group[1:]] == [["parts_output0"], ["parts_output1"]]
    assert (len(group), group.name, repr(group)) == (3, None, "<Symbol group [conv, parts, parts]>")
    assert repr(group["conv_output"]) == "<Symbol conv>"
    statistics = sym.BatchNorm(sym.Variable("x"), output_mean_var=True, name="bn")
    assert statistics.list_outputs() == ["bn_output", "bn_mean", "bn_var"]
    assert sym.Variable("x").get_children() is None
    with pytest.raises(ValueError, match='Cannot find output that matches name "conv"'):
        group["conv"]
    with pytest.raises(ValueError, match='There are multiple outputs with name "conv_output"'):
        sym.Group([group[0], group[0]])["conv_output"]
    with pytest.raises(IndexError):
        group[3]
    with pytest.raises(MXNetError, match="Symbol only accept nonnegative index"):
        group[-1]


def test_composition_replaces_variables():
    inner = sym.Activation(sym.Variable("image"), act_type="relu", name="act")
    whole = convolution()(data=inner, name="renamed")
    assert whole.list_arguments() == ["image", "conv_weight", "conv_bias"]
    assert whole.list_outputs() == ["renamed_output"]
    assert convolution().list_arguments()[0] == "data", "the original is untouched"
    with pytest.raises(MXNetError, match="ComposeKeyword argument name nothing not found"):
        convolution()(nothing=inner)


def test_composition_by_position():
    inner, weight = sym.relu(sym.Variable("image"), name="act"), sym.Variable("w")
    assert convolution()(inner).list_arguments() == ["image", "conv_weight", "conv_bias"]
    assert convolution()(inner, weight, name="renamed").list_outputs() == ["renamed_output"]
    assert convolution()(inner, weight).list_arguments() == ["image", "w", "conv_bias"]
    with pytest.raises(TypeError, match="either as positional or keyword arguments, not both"):
        convolution()(inner, conv_weight=weight)
    with pytest.raises(TypeError, match="Argument data must be Symbol instances, but got 'renamed'"):
        convolution()("renamed")
    with pytest.raises(TypeError, match=r"at most 3 positional arguments \(data, conv_weight, conv_bias\), but got 4"):
        convolution()(inner, weight, weight, weight)


@pytest.mark.parametrize(
    ("build", "want", "op"),
    [
        (lambda x, y: x + y, 8.0, "elemwise_add"),
        (lambda x, y: x - y, 4.0, "elemwise_sub"),
        (lambda x, y: x * y, 12.0, "elemwise_mul"),
        (lambda x, y: x / y, 3.0, "elemwise_div"),
        (lambda x, y: x + 1, 7.0, "_plus_scalar"),
        (lambda x, y: 1 + x, 7.0, "_plus_scalar"),
        (lambda x, y: x - 1, 5.0, "_minus_scalar"),
        (lambda x, y: 1 - x, -5.0, "_rminus_scalar"),
        (lambda x, y: x * 2, 12.0, "_mul_scalar"),
        (lambda x, y: x / 2, 3.0, "_div_scalar"),
        (lambda x, y: 3 / x, 0.5, "_rdiv_scalar"),
        (lambda x, y: x**2, 36.0, "_power_scalar"),
        (lambda x, y: -x, -6.0, "_mul_scalar"),
    ],
)
def test_arithmetic(build, want, op):
    symbol = build(sym.Variable("x"), sym.Variable("y"))
    (out,), _ = symbol.apply({"x": jnp.full(2, 6.0), "y": jnp.full(2, 2.0)})
    np.testing.assert_array_equal(out, [want, want])
    assert f'"op": "{op}"' in symbol.tojson()


def test_variables_keep_what_they_are_given():
    variable = sym.Variable("x", shape=(1, 2), dtype="float16", lr_mult=2, init='["one", {}]', __mine__="yes")
    assert variable.list_attr() == {
        "__shape__": "(1, 2)",
        "__dtype__": "2",
        "__lr_mult__": "2",
        "__init__": '["one", {}]',
        "__mine__": "yes",
    }
    assert variable.infer_shape() == ([(1, 2)], [(1, 2)], [])
    assert variable.infer_type() == ([np.float16], [np.float16], [])
    with pytest.raises(ValueError, match="Attribute name=mine is not supported"):
        sym.Variable("x", mine="yes")
    with pytest.raises(TypeError, match="Expect a string for variable `name`"):
        sym.Variable(1)


def test_training_attributes_of_operators_become_the_users():
    assert convolution(lr_mult=2).attr("__lr_mult__") == "2"


def test_positional_attributes_and_ignored_names():
    x, w = jnp.ones((1, 4, 5, 5)), jnp.ones((2, 4, 3, 3))
    positional = nd.Convolution(x, w, None, (3, 3), num_filter=2, no_bias=True, name="ignored")
    np.testing.assert_array_equal(positional, nd.Convolution(x, weight=w, kernel="[3, 3]", num_filter=np.int64(2), no_bias=1))


@pytest.mark.parametrize("dtype", [np.float16, np.dtype("float16"), jnp.float16, "float16"], ids=repr)
def test_dtypes_are_objects_or_names(dtype):
    x = jnp.ones((2, 3))
    assert nd.Cast(x, dtype=dtype).dtype == nd.softmax(x, dtype=dtype).dtype == np.float16
    assert [op(sym.Variable("x"), dtype=dtype).attr("dtype") for op in (sym.Cast, sym.softmax)] == ["float16"] * 2


def test_dtypes_that_there_are_not():
    assert nd.Cast(jnp.ones(2), dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert nd.softmax(jnp.ones(2), dtype=None).dtype == np.float32
    with pytest.raises(MXNetError, match="Invalid Input: 'bfloat16', valid values are: {None, 'float16'"):
        nd.softmax(jnp.ones(2), dtype=jnp.bfloat16)
    with pytest.raises(TypeError, match="Cannot interpret"):
        sym.Cast(sym.Variable("x"), dtype=sym)


def test_arrays_are_float32_unless_told_otherwise():
    assert nd.array(np.arange(3)).dtype == nd.array([0.5], dtype=None).dtype == jnp.float32
    assert nd.array([1, 2], dtype="int8").dtype == jnp.int8
    np.testing.assert_array_equal(nd.arange(2, 5, repeat=2), np.float32([2, 2, 3, 3, 4, 4]))
    assert nd.zeros((2, 3)).shape == nd.ones((2, 3)).shape == (2, 3)


def test_shape_arguments():
    symbol = convolution()
    assert symbol.infer_shape((1, 2, 5, 5)) == symbol.infer_shape(data=(1, 2, 5, 5)), (
        "positional, in the order of the arguments"
    )
    with pytest.raises(ValueError, match="either by positional or kwargs way"):
        symbol.infer_shape((1, 2, 5, 5), data=(1, 2, 5, 5))
    with pytest.raises(ValueError, match="`args` must be at most 3"):
        symbol.infer_shape(*[(1, 2, 5, 5)] * 4)
    with pytest.raises(TypeError, match=r"Arguments need to be shapes \(tuple\), but 'data' is <class 'list'>"):
        symbol.infer_shape(data=[1, 2, 5, 5])
    with pytest.raises(MXNetError, match="InferShapeKeyword argument name foo not found."):
        symbol.infer_shape(foo=(1,))
    with pytest.raises(MXNetError, match="shape dim size must be >= -1, while received -7"):
        symbol.infer_shape(data=(1, -7, 5, 5))


def test_types():
    symbol = sym.Cast(sym.BatchNorm(convolution(), name="bn"), dtype="float64")
    half, single = np.float16, np.float32
    assert symbol.infer_type(data="float16") == ([half] * 3 + [single] * 2, [np.float64], [single] * 2)
    with pytest.raises(MXNetError, match="Error in operator conv: .* Expected 'float32' v.s. given 'float16' at 'weight'"):
        symbol.infer_type(data="float32", conv_weight="float16")
    with pytest.warns(UserWarning, match="Cannot decide type for the following arguments. Consider"):
        assert symbol.infer_type() == (None, None, None)


def test_outputs_with_unknown_sizes_go_through_any_operator():
    x = sym.Variable("x")
    shuffled = sym.Reshape(sym.SwapAxis(sym.Reshape(x, shape=(0, -4, 3, -1, -2)), dim1=1, dim2=2), shape=(0, -3, -2))
    head = sym.FullyConnected(sym.mean(shuffled, axis=(2, 3)), num_hidden=5, name="fc")
    args, out, _ = head.infer_shape_partial(x=(0, 6, 0, 0))
    assert (args, out) == ([(0, 6, 0, 0), (5, 6), (5,)], [(0, 5)])
    assert sym.Pooling(x, kernel=(2, 2), stride=(2, 2)).infer_shape_partial(x=(0, 3, 0, 9))[1] == [(0, 3, 0, 4)]


def test_half_precision_batch_norm_keeps_float32_statistics():
    x = jnp.linspace(0, 1, 24).reshape(2, 3, 4).astype(jnp.float16)
    vectors = [jnp.ones(3)] * 4
    out = nd.BatchNorm(x, *vectors, fix_gamma=False, train=True)
    assert out.dtype == jnp.float16
    want = nd.BatchNorm(x.astype(jnp.float32), *vectors, fix_gamma=False, train=True)
    np.testing.assert_allclose(out.astype(jnp.float32), want, atol=2e-3)


def test_rrelu_and_dropout_draw_in_training():
    x, key = -jnp.ones((50, 50)), jax.random.key(1)
    slopes = -nd.LeakyReLU(x, act_type="rrelu", train=True, rng=key)[0]
    assert 0.125 <= slopes.min() < 0.15 < 0.3 < slopes.max() <= 0.334
    kept = nd.Dropout(x, p=0.25, train=True, rng=key)
    assert set(np.unique(kept)) == {np.float32(-1 / 0.75), 0}
    assert abs((kept == 0).mean() - 0.25) < 0.03
    rows = nd.Dropout(x, p=0.5, axes=(1,), mode="always", rng=key)
    assert all(len(set(row)) == 1 for row in np.asarray(rows))
    assert not nd.Dropout(x, p=1.0, train=True, rng=key).any()


def test_the_label_may_be_left_out_at_inference_only():
    symbol = sym.SoftmaxOutput(sym.Variable("x"), name="softmax")
    (out,), _ = symbol.apply({"x": jnp.zeros((2, 4))})
    np.testing.assert_array_equal(out, 0.25)
    with pytest.raises(ValueError, match="softmax_label are missing"):
        symbol.apply({"x": jnp.zeros((2, 4))}, train=True)


def test_errors_name_the_node():
    symbol = convolution()
    with pytest.raises(MXNetError, match="Error in operator conv: Shape inconsistent"):
        symbol.apply({"data": jnp.ones((1, 2, 5, 5)), "conv_weight": jnp.ones((4, 3, 3, 3)), "conv_bias": jnp.ones(4)})
