"""examples/mxnet_checkpoint.py does what it says."""

import importlib.util

import jax.numpy as jnp
import mxnet_records as records
import numpy as np

PATH = records.DATA.parents[2] / "examples" / "mxnet_checkpoint.py"
SPEC = importlib.util.spec_from_file_location("mxnet_checkpoint", PATH)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)


def test_prediction_and_shapes(tmp_path, capsys):
    prefix, io = example.recorded(str(tmp_path)), records.arrays("networks/resnext_small/io")
    np.testing.assert_allclose(example.predict(prefix, 0, io["in/data"]), io["out/softmax_output"], rtol=1e-3, atol=1e-4)
    example.print_shapes(example.mxnet.load_checkpoint(prefix, 0)[0], (4, 3, 32, 32))
    assert "fc_output               (4, 7)\n" in capsys.readouterr().out


def test_fine_tuning(tmp_path):
    prefix, images = example.recorded(str(tmp_path)), records.arrays("networks/resnext_small/io")["in/data"]
    labels = jnp.arange(len(images))
    losses = example.fine_tune(prefix, 0, "fc_output", images, labels, steps=40, save_as=f"{tmp_path}/tuned")
    assert losses[-1] < 0.2 < 1.0 < losses[0]
    np.testing.assert_array_equal(example.predict(f"{tmp_path}/tuned", 1, images).argmax(1), labels)
