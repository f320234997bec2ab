"""Whole networks from checkpoints, in inference and in training, against MXNet's own numbers."""

import functools
import shutil

import jax
import jax.numpy as jnp
import mxnet_records as records
import numpy as np
import pytest
from inspecting import recorded as planned
from jax import export

from jaxgroupconv.mxnet import load_checkpoint, save_checkpoint, sym, to_jax
from jaxgroupconv.mxnet.channel_last import rewrite
from jaxgroupconv.mxnet.graph import topological
from jaxgroupconv.mxnet.network import LAYOUTS

NAMES = sorted(path.name for path in (records.DATA / "networks").iterdir())
TRAINED = ["deconv_skip", "resnext_small"]


def checkpoint(name, folder):
    """The recorded network as a checkpoint on disk."""
    source = records.DATA / "networks" / name
    shutil.copy(source / "symbol.json", folder / f"{name}-symbol.json")
    shutil.copy(source / f"{name}-0000.params", folder / f"{name}-0000.params")
    return folder / name


def recorded(name):
    meta, io = records.cases(f"networks/{name}/meta"), records.arrays(f"networks/{name}/io")
    return meta, io, {key.removeprefix("in/"): x for key, x in io.items() if key.startswith("in/")}


def test_the_records_are_complete():
    assert len(NAMES) == 12
    assert [name for name in NAMES if "train" in recorded(name)[0]] == TRAINED


CASES = [(name, layout) for layout in LAYOUTS for name in NAMES]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_inference(name, layout, tmp_path):
    meta, io, inputs = recorded(name)
    symbol, args, aux = load_checkpoint(checkpoint(name, tmp_path), 0)
    assert symbol.list_outputs() == meta["outputs"]
    assert symbol.list_arguments() == meta["arguments"]
    assert symbol.list_auxiliary_states() == meta["aux"]
    variables, apply = to_jax(symbol, args, aux, layout=layout)
    outputs, new_aux = jax.jit(apply, compiler_options=records.QUICK)(variables, {"data": inputs["data"]})
    for output, out in zip(meta["outputs"], outputs, strict=True):
        records.assert_close(out, io[f"out/{output}"], meta["rtol"], meta["atol"], output)
    jax.tree.map(np.testing.assert_array_equal, new_aux, variables["aux"])


@pytest.mark.parametrize("name", TRAINED)
def test_training(name, tmp_path):
    meta, io, inputs = recorded(name)
    symbol, args, aux = load_checkpoint(checkpoint(name, tmp_path), 0)

    @functools.partial(jax.jit, compiler_options=records.QUICK)
    def step(args, heads):
        outputs, pull, new_aux = jax.vjp(lambda args: symbol.apply(args, aux, train=True), args, has_aux=True)
        return outputs, pull(heads)[0], new_aux

    heads = [jnp.asarray(io[f"train/head/{output}"]) for output in meta["outputs"]]
    outputs, grads, new_aux = step({**{name: jnp.asarray(x) for name, x in args.items()}, **inputs}, heads)
    for output, out in zip(meta["outputs"], outputs, strict=True):
        records.assert_close(out, io[f"train/out/{output}"], meta["rtol"], meta["atol"], output)
    assert set(grads) == set(meta["arguments"])
    for argument, grad in grads.items():
        want = io[f"train/grad/{argument}"]
        tolerance = meta["train"]["grad_rtol"] * abs(want).max() + meta["train"]["grad_atol"]
        records.assert_close(grad, want, 0, tolerance, argument)
    assert set(new_aux) == set(meta["aux"])
    for state, moved in new_aux.items():
        records.assert_close(moved, io[f"train/aux/{state}"], 0, meta["train"]["aux_atol"], state)


@pytest.mark.parametrize("name", NAMES)
def test_written_checkpoints_equal_mxnets_byte_for_byte(name, tmp_path):
    prefix = checkpoint(name, tmp_path)
    save_checkpoint(tmp_path / "copy", 0, *load_checkpoint(prefix, 0))
    for ending in ("-symbol.json", "-0000.params"):
        assert (tmp_path / f"copy{ending}").read_bytes() == (tmp_path / f"{name}{ending}").read_bytes()


def test_a_checkpoint_is_saved_over_itself(tmp_path):
    prefix = checkpoint("resnext_small", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    save_checkpoint(prefix, 0, *load_checkpoint(prefix, 0))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["mobilenetv2_0_25", "shufflenet_like", "deconv_skip"])
def test_shapes_follow_from_the_data_alone(name, tmp_path):
    meta, _, inputs = recorded(name)
    symbol, args, aux = load_checkpoint(checkpoint(name, tmp_path), 0)
    arg_shapes, out_shapes, aux_shapes = symbol.infer_shape(data=inputs["data"].shape)
    assert out_shapes == [tuple(shape) for shape in meta["out_shapes"]]
    inferred = dict(zip(symbol.list_arguments(), arg_shapes, strict=True))
    assert {name: inferred[name] for name in args} == {name: x.shape for name, x in args.items()}
    assert aux_shapes == [aux[state].shape for state in symbol.list_auxiliary_states()]


def test_a_network_cut_at_an_inner_output(tmp_path):
    symbol, args, aux = load_checkpoint(checkpoint("mobileface_like", tmp_path), 0)
    names = [name for name in symbol.get_internals().list_outputs() if name.endswith("_output")]
    inner = symbol.get_internals()[names[4]]
    variables, apply = to_jax(inner, args, aux)
    assert set(variables["params"]) < set(args)
    (out,), _ = apply(variables, {"data": jnp.ones((1, 3, 56, 56))})
    assert out.shape == inner.infer_shape(data=(1, 3, 56, 56))[1][0]


def test_channel_last_training_is_the_same_training(tmp_path):
    meta, io, inputs = recorded("resnext_small")
    symbol, args, aux = load_checkpoint(checkpoint("resnext_small", tmp_path), 0)
    variables, apply = to_jax(symbol, args, aux, layout="channel-last")

    @functools.partial(jax.jit, compiler_options=records.QUICK)
    def step(variables, heads):
        def outputs(params):
            return apply({**variables, "params": params}, inputs, train=True)

        _, pull, new_aux = jax.vjp(outputs, variables["params"], has_aux=True)
        return pull(heads)[0], new_aux

    grads, new_aux = step(variables, [jnp.asarray(io[f"train/head/{output}"]) for output in meta["outputs"]])
    for argument, grad in grads.items():
        want = io[f"train/grad/{argument}"]
        tolerance = meta["train"]["grad_rtol"] * abs(want).max() + meta["train"]["grad_atol"]
        relaid = grad.transpose(3, 2, 0, 1) if want.ndim == 4 else grad
        records.assert_close(relaid, want, 0, tolerance, argument)
    for state, moved in new_aux.items():
        records.assert_close(moved, io[f"train/aux/{state}"], 0, meta["train"]["aux_atol"], state)


def test_channel_last_networks_transpose_at_their_ends_only(tmp_path):
    symbol, args, aux = load_checkpoint(checkpoint("mobilenetv2_0_25", tmp_path), 0)
    rewritten, weights = rewrite(symbol)
    assert weights == {name for name in args if name.endswith("_weight")}
    transposes = [node for node in topological(rewritten.heads) if node.op and node.op.name == "transpose"]
    assert len(transposes) == len(weights) + 2


def test_a_shared_weight_keeps_its_layout():
    x, w = sym.Variable("x"), sym.Variable("w")
    attributes = {"kernel": (1, 1), "num_filter": 4, "no_bias": True}
    symbol = sym.Convolution(sym.Convolution(x, w, **attributes), w, **attributes)
    args = {"w": np.arange(16, dtype=np.float32).reshape(4, 4, 1, 1)}
    image = {"x": jnp.ones((1, 4, 2, 2))}
    results = []
    for layout in ("channel-first", "channel-last"):
        variables, apply = to_jax(symbol, args, layout=layout)
        assert variables["params"]["w"].shape == (4, 4, 1, 1)
        results.append(apply(variables, image)[0][0])
    np.testing.assert_array_equal(*results)


def test_layouts_that_there_are_not():
    with pytest.raises(ValueError, match="`layout` must be one of channel-first, channel-last, but got 'NHWC'"):
        to_jax(sym.Variable("x"), {}, layout="NHWC")


def test_the_function_is_pure_under_jit_grad_and_vmap(tmp_path):
    symbol, args, aux = load_checkpoint(checkpoint("seed_conv_g3", tmp_path), 0)
    variables, apply = to_jax(symbol, args, aux)
    images = jnp.linspace(-1, 1, 2 * 6 * 64).reshape(2, 1, 6, 8, 8)

    def loss(params, image):
        return apply({"params": params, "aux": {}}, {"data": image})[0][0].sum()

    each = jax.vmap(jax.grad(loss), (None, 0))(variables["params"], images)
    for i, image in enumerate(images):
        jax.tree.map(
            lambda many, one, i=i: np.testing.assert_allclose(many[i], one, rtol=1e-5),
            each,
            jax.grad(loss)(variables["params"], image),
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_function_is_exported(layout, tmp_path):
    _, io, inputs = recorded("resnext_small")
    variables, apply = to_jax(*load_checkpoint(checkpoint("resnext_small", tmp_path), 0), layout=layout)

    def predict(variables, images):
        return apply(variables, {"data": images})[0]

    whole = export.export(jax.jit(predict))(variables, inputs["data"])
    again = export.deserialize(whole.serialize())
    (out,) = jax.jit(again.call, compiler_options=records.QUICK)(variables, inputs["data"])
    np.testing.assert_allclose(out, io["out/softmax_output"], rtol=1e-3, atol=1e-4)


def test_missing_inputs_are_named_all_at_once(tmp_path):
    symbol, args, aux = load_checkpoint(checkpoint("resnext_small", tmp_path), 0)
    del args["stem_weight"], args["fc_bias"]
    with pytest.raises(ValueError, match="must hold every input of the network, but data, stem_weight, fc_bias are missing"):
        symbol.apply(args, aux)
    with pytest.raises(ValueError, match="`aux_params` must hold every auxiliary state .* but stem_bn_moving_mean"):
        to_jax(symbol, args)


def test_a_dropout_needs_a_key_in_training(tmp_path):
    x = sym.Variable("x")
    symbol = sym.Dropout(x, p=0.5) + sym.Dropout(x, p=0.5)
    (out,), _ = symbol.apply({"x": jnp.ones(1000)})
    np.testing.assert_array_equal(out, 2)
    with pytest.raises(ValueError, match="`rng` must be a key where random numbers are drawn"):
        symbol.apply({"x": jnp.ones(1000)}, train=True)
    (out,), _ = symbol.apply({"x": jnp.ones(1000)}, train=True, rng=jax.random.key(0))
    assert set(np.unique(out)) == {0, 2, 4}, "the two dropouts draw different numbers"


def test_checkpoints_of_another_form_are_refused(tmp_path):
    prefix = checkpoint("seed_conv_g1", tmp_path)
    shutil.copy(records.DATA / "params" / "v2_list.params", f"{prefix}-0001.params")
    with pytest.raises(ValueError, match="must hold named arrays to be a checkpoint, but holds a list of 3"):
        load_checkpoint(prefix, 1)
    shutil.copy(records.DATA / "params" / "v2_odd_names.params", f"{prefix}-0002.params")
    with pytest.raises(ValueError, match="must name its arrays arg:NAME or aux:NAME"):
        load_checkpoint(prefix, 2)


@pytest.mark.parametrize("layout", ["channel-first", "channel-last"])
def test_grouped_convolutions_are_planned_forward_and_backward(layout, tmp_path):
    symbol, args, aux = load_checkpoint(checkpoint("resnext_small", tmp_path), 0)
    variables, apply = to_jax(symbol, args, aux, layout=layout)
    _, _, inputs = recorded("resnext_small")
    grouped = [node for node in topological(symbol.heads) if node.op and int(node.attrs.get("num_group", 1)) > 1]

    def loss(params):
        return apply({**variables, "params": params}, inputs, train=True)[0][0].sum()

    for f, passes in ((loss, 1), (jax.grad(loss), 3)):
        with planned() as plans:
            jax.jit(f).lower(variables["params"])
        names = [name for spec, name in plans if spec.groups > 1]
        assert len(names) == passes * len(grouped) > 0 and "native" not in names
