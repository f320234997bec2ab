"""`python -m jaxgroupconv`, the printed table and the drawn graph."""

import io
import json
import re
import struct

import jax.numpy as jnp
import mxnet_records as records
import numpy as np
import pytest
from test_mxnet_networks import checkpoint

from jaxgroupconv.__main__ import main
from jaxgroupconv.mxnet import load_checkpoint, plot_network, print_summary, sym
from jaxgroupconv.mxnet.convert import save_npz


@pytest.fixture
def skip(tmp_path):
    """The prefix of a small checkpoint with convolutions and deconvolutions."""
    return checkpoint("deconv_skip", tmp_path)


def test_shapes(skip, capsys):
    assert main(["shapes", f"{skip}-symbol.json", "--data", "2,3,16,20"]) == 0
    parameters, maps = capsys.readouterr().out.split("Shape of feature maps:\n")
    assert "bilinear_weight\t(4, 1, 8, 8)\n" in parameters and "e1_bn_moving_mean\t(8,)\n" in parameters
    assert "up1_output\t(2, 12, 8, 10)\n" in maps and "weight" not in maps


def test_shapes_that_stay_unknown(skip, capsys):
    assert main(["shapes", f"{skip}-symbol.json", "--data=0,3,16,20"]) == 1
    printed = capsys.readouterr()
    assert "up1_output\t(0, 12, 8, 10)\n" in printed.out
    assert printed.err.startswith("unknown (0 or ()): data, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "2,x"], "`--data` must name an input before its shape"),
        ([], "the shape of an input must be given"),
        (["--nothing", "1,2"], "InferShapeKeyword argument name nothing not found"),
        (["--data", "2,4,16,20", "--e1_weight", "8,3,3,3"], "Error in operator e1: Shape inconsistent"),
    ],
)
def test_wrong_shapes(arguments, message, skip, capsys):
    assert main(["shapes", f"{skip}-symbol.json", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_run(skip, tmp_path, capsys):
    recorded, meta = records.arrays("networks/deconv_skip/io"), records.cases("networks/deconv_skip/meta")
    np.save(tmp_path / "x.npy", recorded["in/data"])
    command = ["run", str(skip), "0", "--data", str(tmp_path / "x.npy")]
    assert main([*command, "--save", str(tmp_path / "y.npy")]) == 0
    records.assert_close(np.load(tmp_path / "y.npy"), recorded["out/prob_output"], meta["rtol"], meta["atol"], "prob")
    assert main([*command, "--output", "e1_output"]) == 0
    assert capsys.readouterr().out.startswith("e1_output\t(2, 8, 16, 20)\tfloat32\n")
    assert main([*command, "--output", "nothing"]) == 1
    assert 'Cannot find output that matches name "nothing"' in capsys.readouterr().err
    assert main(["run", str(skip), "7", "--data", str(tmp_path / "x.npy")]) == 1
    assert "deconv_skip-0007.params" in capsys.readouterr().err


def read_safetensors(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    assert (8 + length) % 8 == 0 and len(data) == max(entry["data_offsets"][1] for entry in header.values())
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], {"F32": np.float32}[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("layout", ["channel-first", "channel-last"])
def test_convert(ending, layout, skip, tmp_path):
    target = tmp_path / f"out.{ending}"
    assert main(["convert", str(skip), "0", str(target), "--layout", layout]) == 0
    written = read_safetensors(target) if ending == "safetensors" else dict(np.load(target))
    _, args, aux = load_checkpoint(skip, 0)
    assert written.keys() == args.keys() | aux.keys()
    for name, x in {**args, **aux}.items():
        last = layout == "channel-last" and name.endswith("_weight")
        np.testing.assert_array_equal(written[name], x.transpose(2, 3, 1, 0) if last else x)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("command", ["run", "out.npz", "out.safetensors"])
def test_progress_is_shown_within_large_arrays_on_a_terminal(command, skip, tmp_path, monkeypatch):
    arguments = ["convert", str(skip), "0", str(tmp_path / command)]
    if command == "run":
        np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
        arguments = ["run", str(skip), "0", "--output", "e1_output", "--data", str(tmp_path / "x.npy")]
    _, args, aux = load_checkpoint(skip, 0)
    total = sum(x.nbytes for x in (*args.values(), *aux.values()))

    def shown(large, stream):
        monkeypatch.setattr("jaxgroupconv.__main__.LARGE", large)
        monkeypatch.setattr("sys.stderr", stream)
        assert main(arguments) == 0
        return stream.getvalue()

    assert shown(total, Terminal()) == "", "the file is not large"
    assert shown(0, io.StringIO()) == "", "nobody looks"
    monkeypatch.setattr("jaxgroupconv.mxnet.convert.CHUNK", 1000)
    lines = shown(0, Terminal()).split("\r")
    assert len(lines) - 1 == sum(-(-x.nbytes // 1000) for x in (*args.values(), *aux.values())) > len(args) + len(aux)
    whole = f"{total / 1e6:.0f}"
    assert lines[-1] == f"{whole} of {whole} MB\n"


def test_scalars_and_bfloat16_are_converted(tmp_path):
    arrays = {"scalar": np.array(2.0, np.float32), "half": np.ones((2, 3), jnp.bfloat16), "empty": np.zeros((0, 2), np.float32)}
    counts = []
    save_npz(tmp_path / "x.npz", arrays, counts.append)
    assert sum(counts) == sum(x.nbytes for x in arrays.values())
    for name, x in np.load(tmp_path / "x.npz").items():
        np.testing.assert_array_equal(x, arrays[name].astype(np.float32), strict=True)


def test_convert_refuses_what_it_cannot_write(skip, tmp_path, capsys):
    assert main(["convert", str(skip), "0", str(tmp_path / "x.h5")]) == 1
    assert "`target` must end in .npz or .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["run", "x", "0", "--data", "x.npy", "--wrong", "1"], ["convert", "x", "zero", "y"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "usage: python -m jaxgroupconv" in capsys.readouterr().err


def test_summary(skip, capsys):
    symbol, args, _ = load_checkpoint(skip, 0)
    assert main(["shapes", f"{skip}-symbol.json", "--data", "2,3,16,20", "--summary"]) == 0
    table = capsys.readouterr().out
    assert "\ne1(Convolution)                                     8x16x20                 216         data  " in table
    assert "\ne1_bn(BatchNorm)                                    8x16x20                 16          e1    " in table
    assert "\n_plus0(elemwise_add)" in table and re.search(r"\n +e2_relu +\n", table), "a second input has a line of its own"
    assert f"Total params: {sum(x.size for x in args.values())}\n" in table
    print_summary(symbol)
    assert "data(null)" in capsys.readouterr().out, "without shapes, inputs are told from parameters by their use"


def test_labels_and_states_are_no_parameters(capsys):
    network = sym.SoftmaxOutput(sym.BatchNorm(sym.Variable("data"), name="bn"), name="softmax")
    print_summary(network, {"data": (2, 5)})
    assert "Total params: 10\n" in capsys.readouterr().out


def test_drawings(skip):
    symbol, _, _ = load_checkpoint(skip, 0)
    drawing = plot_network(symbol, {"data": (2, 3, 16, 20)})
    assert drawing.startswith("flowchart TD\n")
    assert re.search(r'n0\(\["data"\]\)\n +n1\["e1<br/>Convolution<br/>kernel=\(3, 3\)', drawing)
    assert "n0 -->|3x16x20| n1\n" in drawing and "weight" not in drawing
    dot = plot_network(symbol, form="dot", hide_weights=False)
    assert dot.startswith("digraph network {\n") and '[label="e1_weight", shape=oval]' in dot
    assert len(re.findall("->", dot)) == sum(len(node["inputs"]) for node in json.loads(symbol.tojson())["nodes"])
    with pytest.raises(ValueError, match="`form` must be 'mermaid' or 'dot'"):
        plot_network(symbol, form="png")
