"""Symbol files of all generations, and files that are none."""

import copy
import json

import mxnet_records as records
import pytest

from jaxgroupconv.mxnet import MXNetError, sym

PARAMETERS = {"kernel": "(3,3)", "num_filter": "4"}


def document(operator, version=None, variables=("data", "c_weight", "c_bias"), width=3):
    """A convolution as a file of some version writes it."""

    def entry(i):
        return [i, 0, 0][:width]

    nodes = [{"op": "null", "name": name, "inputs": []} for name in variables]
    nodes.append({"op": "Convolution", "name": "c", "inputs": [entry(i) for i in range(len(variables))]} | operator)
    found = {"nodes": nodes, "arg_nodes": list(range(len(variables))), "heads": [entry(len(variables))]}
    return found | ({"attrs": {"mxnet_version": ["int", version]}} if version else {})


def load(found):
    return sym.load_json(json.dumps(found))


def attributes(symbol):
    return {name: attrs for name, attrs in symbol.attr_dict().items() if attrs}


@pytest.mark.parametrize(
    "found",
    [
        document({"param": PARAMETERS, "backward_source_id": -1}, width=2),
        document({"param": PARAMETERS, "attr": {}}, width=2),
        document({"attr": PARAMETERS}, 904),
        document({"attr": PARAMETERS}, 1200),
        document({"attrs": PARAMETERS}, 10000),
        document({"attrs": PARAMETERS}, 10901),
        document(
            {"param": {"kernel": "(9,9)"}, "attr": {"kernel": "(5,5)", "num_filter": "4"}, "attrs": {"kernel": "(3,3)"}}, 10901
        ),
    ],
    ids=["0.7", "0.8", "0.9", "0.12", "1.0", "1.9", "all keys at once"],
)
def test_every_generation_is_read(found):
    symbol = load(found)
    assert symbol.list_arguments() == ["data", "c_weight", "c_bias"]
    assert attributes(symbol) == {"c": PARAMETERS}
    again = sym.load_json(symbol.tojson())
    assert again.tojson() == symbol.tojson(), "what is written is read back the same"
    assert '"mxnet_version": ["int", 10901]' in symbol.tojson()


def test_old_files_lack_auxiliary_states_and_they_are_added():
    names = ("data", "b_gamma", "b_beta")
    nodes = [{"op": "null", "name": name, "param": {}, "inputs": []} for name in names]
    nodes.append({"op": "BatchNorm", "name": "b", "param": {"eps": "0.001"}, "inputs": [[0, 0], [1, 0], [2, 0]]})
    symbol = load({"nodes": nodes, "arg_nodes": [0, 1, 2], "heads": [[3, 0]]})
    assert symbol.list_auxiliary_states() == ["b_moving_mean", "b_moving_var"]
    assert symbol.attr_dict()["b_moving_var"] == {"eps": "0.001", "__init__": '["one", {}]'}
    modern = {"nodes": nodes, "arg_nodes": [0, 1, 2], "heads": [[3, 0]], "attrs": {"mxnet_version": ["int", 1000]}}
    with pytest.raises(MXNetError, match=r"nodes\[3\] \('b'\): Operator BatchNorm expects 5 inputs, but got 3"):
        load(modern)


def test_a_missing_bias_of_an_old_file_is_added():
    assert load(document({"param": PARAMETERS}, None, ("data", "c_weight"), 2)).list_arguments()[2] == "c_bias"


def test_training_attributes_of_old_files():
    user = {"ctx_group": "a", "lr_mult": "2", "weight_lr_mult": "3", "mood": "calm"}
    old = attributes(load(document({"param": PARAMETERS, "attr": user}, width=2)))
    assert old["c"] == PARAMETERS | {"__ctx_group__": "a", "__lr_mult__": "2", "__mood__": "calm"}
    assert old["c_weight"] == {"__lr_mult__": "3"}
    middle = attributes(load(document({"attr": PARAMETERS | {"lr_mult": "2", "weight_lr_mult": "3"}}, 1100)))
    assert (middle["c"]["__lr_mult__"], middle["c_weight"]) == ("2", {"__lr_mult__": "3"})
    with pytest.raises(MXNetError, match=r"nodes\[3\] \('c'\): Cannot find argument 'lr_mult'"):
        load(document({"attrs": PARAMETERS | {"lr_mult": "2"}}, 10901))


def test_user_attributes_are_tolerated_and_kept():
    stray = {"__init__": "x", "__storage_type__": "0", "__shape__": "(1,)", "__profiler_scope__": "<unk>:"}
    assert attributes(load(document({"attrs": PARAMETERS | stray}, 10901)))["c"] == PARAMETERS | stray


def test_newer_files_are_read_with_a_warning():
    with pytest.warns(UserWarning, match="saved by a newer MXNet, 20000"):
        load(document({"attrs": PARAMETERS}, 20000))


def test_numpy_shapes():
    found = document({"attrs": PARAMETERS}, 10901)
    found["attrs"]["is_np_shape"] = ["int", 1]
    symbol = load(found)
    assert '"is_np_shape": ["int", 1]' in symbol.tojson()
    assert symbol.infer_shape_partial(data=(-1, 2, 5, 5))[1] == [(-1, 4, 3, 3)]
    assert symbol.infer_shape(data=(0, 2, 5, 5))[1] == [(0, 4, 3, 3)], "zero is a size"


def test_states_carry_the_number_of_their_changes():
    shared = {"moving_mean": sym.Variable("mm"), "moving_var": sym.Variable("mv")}
    twice = sym.BatchNorm(sym.BatchNorm(sym.Variable("x"), **shared, name="a"), **shared, name="b")
    rows = {node["name"]: node["inputs"] for node in json.loads(twice.tojson())["nodes"]}
    assert [entry[2] for entry in rows["a"]] == [0, 0, 0, 1, 1]
    assert [entry[2] for entry in rows["b"]] == [0, 0, 0, 2, 2]


@pytest.mark.parametrize("case", records.cases("infer_shape"), ids=records.by_id)
def test_round_trip(case):
    symbol = load(case["symbol"])
    written = json.loads(symbol.tojson())
    assert {key: written[key] for key in case["symbol"]} == case["symbol"]


def test_unknown_operators_are_named_all_at_once():
    found = document({"attrs": PARAMETERS}, 10901)
    for name, op in (("a", "ROIPooling"), ("b", "Custom"), ("c2", "ROIPooling")):
        found["nodes"].append({"op": op, "name": name, "inputs": []})
    with pytest.raises(MXNetError, match=r"not supported: ROIPooling \(nodes a, c2\); Custom \(nodes b\)"):
        load(found)


def damaged(*path, value):
    found = copy.deepcopy(document({"attrs": PARAMETERS}, 10901))
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "the file must be of JSON's kind for dict"),
        ({}, '"nodes" must be of JSON'),
        (damaged("nodes", 0, value=3), r"nodes\[0\] must be"),
        (damaged("nodes", 3, "inputs", 0, value=[3, 0, 0]), r"nodes\[3\] \('c'\): an index must be in 0..2, .* but got 3"),
        (damaged("nodes", 3, "inputs", 0, value=[-1, 0, 0]), "but got -1"),
        (damaged("nodes", 3, "inputs", 0, value=[0, 1, 0]), "output of 'data': an index must be in 0..0"),
        (damaged("nodes", 3, "inputs", 0, value=[0.0, 0, 0]), "but got 0.0"),
        (damaged("nodes", 3, "inputs", 0, value=7), "an entry must be"),
        (damaged("nodes", 3, "inputs", value=[[0, 0, 0]]), "expects 3 inputs, but got 1"),
        (damaged("nodes", 3, "attrs", "kernel", value=3), "attribute kernel must be of JSON's kind for str"),
        (damaged("nodes", 3, "attrs", "num_filter", value="-3.5"), "Invalid Parameter format for num_filter"),
        (damaged("nodes", 3, "attrs", "kernel", value="(-3, 3)"), "shape dim size must be >= -1, while received -3"),
        (damaged("nodes", 3, "name", value=None), "name must be"),
        (damaged("nodes", 3, "op", value=[]), r"nodes\[3\] \('c'\): op must be of JSON's kind for str, but got '\[\]'"),
        (damaged("nodes", 3, "op", value={}), r"nodes\[3\] \('c'\): op must be of JSON's kind for str, but got '{}'"),
        (damaged("nodes", 3, "op", value=None), r"nodes\[3\] \('c'\): op must be"),
        (damaged("nodes", 0, "inputs", value=[[0, 0, 0]]), "nodes before this one"),
        (damaged("nodes", 1, "inputs", value=[[0, 0, 0]]), "a variable must have no inputs"),
        (damaged("arg_nodes", value=[3]), r"must list variables, but nodes\[3\] is an operator"),
        (damaged("arg_nodes", value=[99]), '"arg_nodes": an index must be'),
        (damaged("arg_nodes", value=None), '"arg_nodes" must be'),
        (damaged("heads", value=[]), '"heads" must list at least one output'),
        (damaged("heads", value=[[9, 0, 0]]), '"heads": an index must be'),
        (damaged("attrs", "mxnet_version", value="new"), '"mxnet_version" must be'),
    ],
)
def test_damage_is_refused_with_its_place(found, message):
    with pytest.raises(ValueError, match=message):
        load(found)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"nodes": NaN}', "\x00"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        sym.load_json(text)


def test_absurd_sizes_cost_nothing():
    found = document({"attrs": {"kernel": "(4000000000, 4000000000)", "num_filter": "4000000000"}}, 10901)
    with pytest.raises(MXNetError, match="kernel size exceed input"):
        load(found).infer_shape(data=(1, 2, 5, 5))


def test_deep_networks_need_no_recursion():
    symbol = sym.Variable("x")
    for _ in range(3000):
        symbol = sym.relu(symbol)
    again = sym.load_json(symbol.tojson())
    assert again.infer_shape(x=(2, 3))[1] == [(2, 3)]


def test_files(tmp_path):
    symbol = load(document({"attrs": PARAMETERS}, 10901))
    symbol.save(tmp_path / "net-symbol.json")
    assert sym.load(tmp_path / "net-symbol.json").tojson() == symbol.tojson()
