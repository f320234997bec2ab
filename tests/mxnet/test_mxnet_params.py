"""Parameter files: every version read, MXNet's own bytes written, damage refused."""

import struct

import jax
import jax.numpy as jnp
import mxnet_records as records
import numpy as np
import pytest
from jax.experimental import sparse

from jaxgroupconv.mxnet import load, params_file, save

PARAMS = records.DATA / "params"
EXPECTED = records.cases("params/expected")
ARRAYS = records.arrays("params/expected")
GOOD = [pytest.param(file, id=file["file"]) for file in EXPECTED["files"]]
WRITTEN = [file for file in GOOD if file.values[0]["origin"].startswith("written by MXNet")]


def test_the_records_are_complete():
    assert (len(GOOD), len(WRITTEN), len(EXPECTED["must_raise_ValueError"])) == (14, 8, 12)


@pytest.mark.parametrize("file", GOOD)
def test_load(file):
    loaded = load(PARAMS / file["file"])
    if file["kind"] == "dict":
        assert list(loaded) == [entry["name"] for entry in file["entries"]]
        loaded = list(loaded.values())
    assert isinstance(loaded, list)
    for entry, x in zip(file["entries"], loaded, strict=True):
        if entry.get("none"):
            assert x is None
        elif entry["stype"] == "default":
            assert isinstance(x, np.ndarray) and x.shape == tuple(entry["shape"])
            assert x.dtype == (jnp.bfloat16 if entry["dtype"] == "bfloat16" else entry["dtype"])
            np.testing.assert_array_equal(x.astype(ARRAYS[entry["array"]].dtype), ARRAYS[entry["array"]])
        else:
            assert isinstance(x, sparse.BCOO if entry["stype"] == "row_sparse" else sparse.BCSR)
            assert x.dtype == entry["dtype"]
            np.testing.assert_array_equal(x.todense(), ARRAYS[entry["dense"]])
            np.testing.assert_array_equal(x.data, ARRAYS[entry["values"]])


@pytest.mark.parametrize("file", WRITTEN)
def test_written_files_equal_mxnets_byte_for_byte(file, tmp_path):
    path = PARAMS / file["file"]
    save(tmp_path / "copy.params", load(path))
    assert (tmp_path / "copy.params").read_bytes() == path.read_bytes()


def test_a_file_is_saved_over_itself(tmp_path):
    path, x = tmp_path / "x.params", np.arange(100_000, dtype=np.float32)
    save(path, {"x": x})
    (tmp_path / "link.params").symlink_to(path)
    loaded = load(path)
    for target in (path, tmp_path / "link.params"):
        save(target, loaded)
        np.testing.assert_array_equal(load(path)["x"], x)
    np.testing.assert_array_equal(loaded["x"], x)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.params", "x.params"]
    assert (tmp_path / "link.params").is_symlink()


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    save(tmp_path / "x.params", {"x": np.ones(3)})
    monkeypatch.setattr(params_file, "_write_array", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "x.params", {"x": np.zeros(3)})
    monkeypatch.undo()
    np.testing.assert_array_equal(load(tmp_path / "x.params")["x"], 1)
    assert [file.name for file in tmp_path.iterdir()] == ["x.params"]


@pytest.mark.parametrize("name", EXPECTED["must_raise_ValueError"])
def test_damage_is_refused_with_its_place(name):
    with pytest.raises(ValueError, match=rf"{name} is no valid .params file: near byte \d+ of \d+, "):
        load(PARAMS / name)


@pytest.mark.parametrize("name", ["v0_dense", "v1_dense", "v2_row_sparse", "v2_csr", "v2_odd_names", "v3_np_shape"])
def test_every_truncation_is_refused(name, tmp_path):
    content = (PARAMS / f"{name}.params").read_bytes()
    for length in range(len(content)):
        (tmp_path / "short.params").write_bytes(content[:length])
        with pytest.raises(ValueError, match="is no valid .params file"):
            load(tmp_path / "short.params")


@pytest.mark.parametrize("name", ["v0_dense", "v2_all_dtypes", "v2_row_sparse", "v2_csr", "v3_np_shape"])
def test_random_damage_never_does_anything_but_raise_value_error(name, tmp_path):
    content = (PARAMS / f"{name}.params").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), 2):
            damaged[at] = rng.integers(256)
        (tmp_path / "damaged.params").write_bytes(damaged)
        try:
            load(tmp_path / "damaged.params")  # damage within values is none that a reader could see
        except ValueError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("at", "value", "complaint"),
    [
        (0x7C, struct.pack("<q", 6), "must be in 0..5, but reach 3..6"),
        (0x28, struct.pack("<q", 3), "cannot have the shape"),
    ],
    ids=["row index", "stored shape"],
)
def test_sparse_arrays_are_checked(at, value, complaint, tmp_path):
    content = bytearray((PARAMS / "v2_row_sparse.params").read_bytes())
    content[at : at + 8] = value
    (tmp_path / "bad.params").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        load(tmp_path / "bad.params")


def test_csr_rows_are_checked(tmp_path):
    content = (PARAMS / "v2_csr.params").read_bytes()
    rows, wrong = struct.pack("<4q", 0, 2, 2, 4), struct.pack("<4q", 0, 3, 2, 4)
    assert rows in content
    (tmp_path / "bad.params").write_bytes(content.replace(rows, wrong))
    with pytest.raises(ValueError, match="indptr of a csr array .* must rise from 0 to 4"):
        load(tmp_path / "bad.params")


def test_a_wide_sparse_array_needs_64_bit_mode(tmp_path):
    with jax.enable_x64(True):
        wide = sparse.BCOO((jnp.ones((1, 2), jnp.float64), jnp.array([[1]])), shape=(3, 2))
        save(tmp_path / "wide.params", {"w": wide})
        assert load(tmp_path / "wide.params")["w"].dtype == np.float64
    with pytest.raises(ValueError, match=r"float64, which JAX narrows. Load it under jax.enable_x64"):
        load(tmp_path / "wide.params")


def test_loading_maps_the_file_and_copies_nothing():
    weights = load(PARAMS / "v2_all_dtypes.params")["arg:w_float32"]
    assert not weights.flags.owndata and not weights.flags.writeable


@pytest.mark.parametrize("x", [np.zeros(2, np.uint16), np.zeros(2, np.complex64)], ids=["uint16", "complex64"])
def test_dtypes_that_mxnet_has_not(x, tmp_path):
    with pytest.raises(ValueError, match=f"`dtype` must be one that MXNet has, but got {x.dtype}"):
        save(tmp_path / "x.params", [x])
    assert not (tmp_path / "x.params").exists()


def test_save_takes_collections_only(tmp_path):
    with pytest.raises(TypeError, match="`data` must be a dict or a list, but got ndarray"):
        save(tmp_path / "x.params", np.zeros(2))


def test_sparse_forms_that_the_format_has_not(tmp_path):
    with pytest.raises(ValueError, match="BCOO with one sparse dimension or a BCSR matrix"):
        save(tmp_path / "x.params", [sparse.BCOO.fromdense(jnp.eye(2))])


def test_big_endian_and_strided_arrays_are_written_right(tmp_path):
    x = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    save(tmp_path / "x.params", {"x": x})
    np.testing.assert_array_equal(load(tmp_path / "x.params")["x"], x)
