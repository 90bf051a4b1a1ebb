"""Compares `gru run` and `gru convert` with ONNX Runtime on random models.

    python tests/against_onnxruntime.py path/to/gru [DEVICE ...]

DEVICE is cpu, gpu or software; by default cpu and the machine's adapter.

Reading: every ONNX GRU that the program supports: reset before and after, three directions, with and without bias, h0,
lengths, every activation as a gate and as the candidate, clip, different activations in the directions, stacks, both
layouts, functions, inner graphs, weights of 8 bits. Writing: every definition; ONNX Runtime must compute from the model of
`gru convert` what `gru run` computes from the original. Needs numpy, onnx, onnxruntime and safetensors.
"""

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

ATOL = RTOL = 1e-5
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
worst = {}  # by definition and direction, then by compared array
rng = np.random.default_rng(5)


def uniform(*shape, bound=1.0):
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def gru(binary, *arguments):
    result = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{arguments}: {result.stderr}")


def compare(what, got, expected, case):
    assert got.shape == expected.shape, (what, case, got.shape, expected.shape)
    error = np.abs(got - expected)
    of_variant = worst.setdefault(variant(case), {})
    of_variant[what] = max(of_variant.get(what, 0.0), float(error.max()))
    if not (error <= ATOL + RTOL * np.abs(expected)).all():
        sys.exit(f"WRONG: {what}, {case}: off by {error.max():.1e}")


def variant(case):
    """Returns reset, update and direction under this project's names."""
    if "after" in case:
        words = {"forward": "forward", "reverse": "reverse", "bidirectional": "both"}
        return ("after" if case["after"] else "before", "keeps", words[case["direction"]])
    return (case["reset"], case["update"], case["direction"])


def run_onnxruntime(path, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def node(case, layer, x, inputs):
    """Returns a GRU node of one layer, the nodes that turn its Y [T, D, B, H] into [T, B, D·H], and its initialisers."""
    d, h, i = DIRECTIONS[case["direction"]], case["H"], case["I"] if layer == 0 else case["H"] * DIRECTIONS[case["direction"]]
    bound = 1 / np.sqrt(h)
    held = {f"W{layer}": uniform(d, 3 * h, i, bound=bound), f"R{layer}": uniform(d, 3 * h, h, bound=bound)}
    if case["bias"]:
        held[f"B{layer}"] = uniform(d, 6 * h, bound=bound)
    names = [x, f"W{layer}", f"R{layer}", f"B{layer}" if case["bias"] else "", *inputs]
    while not names[-1]:
        names.pop()
    attributes = {"hidden_size": h, "direction": case["direction"], "linear_before_reset": case["after"]}
    for name in ("activations", "activation_alpha", "activation_beta"):
        if case.get(name):
            attributes[name] = case[name] * (1 if case.get("each_direction") else d)
    if case.get("clip"):
        attributes["clip"] = case["clip"]
    nodes = [helper.make_node("GRU", names, [f"Y{layer}", f"Y_h{layer}"], name=f"gru_{layer}", **attributes)]
    if d == 1:
        nodes.append(helper.make_node("Squeeze", [f"Y{layer}", "one"], [f"y{layer}"]))
    else:
        nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"t{layer}", "shape"], [f"y{layer}"]))
    return nodes, held


def model_of(case):
    """Returns the model, its feeds, and the options of `gru run` besides x."""
    t, b, d, h, layers = case["T"], case["B"], DIRECTIONS[case["direction"]], case["H"], case["layers"]
    held = {"one": np.array([1])} if d == 1 else {"shape": np.array([0, 0, -1])}
    feeds, inputs = {"x": uniform(t, b, case["I"])}, ["", ""]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, case["I"]])]
    if case["lengths"]:
        # The state of a row of length 0 is the first state here and 0 in ONNX Runtime.
        feeds["lengths"] = rng.integers(1, t + 1, b).astype(np.int32)
        values.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [None]))
        inputs[0] = "lengths"
    nodes, last, h0s = [], "x", []
    for layer in range(layers):
        if case["h0"]:
            name = f"h0_{layer}"
            feeds[name] = uniform(d, b, h)
            h0s.append(feeds[name])
            values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [d, None, h]))
            inputs[1] = name
        more, weights = node(case, layer, last, inputs)
        nodes, held, last = nodes + more, {**held, **weights}, f"y{layer}"
    nodes.append(helper.make_node("Concat", [f"Y_h{layer}" for layer in range(layers)], ["h_n"], axis=0))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in (last, "h_n")]
    initialisers = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "random", values, outputs, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case["opset"])], ir_version=10)
    onnx.checker.check_model(model)
    arrays = {"h0": np.concatenate(h0s)} if h0s else {}
    return model, feeds, {**arrays, **({"lengths": feeds["lengths"]} if case["lengths"] else {})}


def batch_first(model, case, arrays):
    """Returns the same GRU as a node of layout 1, with h0 and lengths stored in the model."""
    gru_node = next(node for node in model.graph.node if node.op_type == "GRU")
    held = {name: array for name, array in [("h0", arrays.get("h0")), ("lengths", arrays.get("lengths"))] if array is not None}
    if "h0" in held:
        held["h0"] = held["h0"].swapaxes(0, 1)
    names = [*gru_node.input[:3], gru_node.input[3] if case["bias"] else "", *(n if n in held else "" for n in ("lengths", "h0"))]
    attributes = {a.name: helper.get_attribute_value(a) for a in gru_node.attribute}
    graph_node = helper.make_node("GRU", names, ["Y"], name="the_gru", **attributes, layout=1)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in gru_node.input]
    more = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in held.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, case["I"]])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([graph_node], "batch_first", [x], [y], weights + more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def in_function(model):
    """Returns the same model, all nodes of which are a function that the graph calls."""
    graph, opsets = model.graph, list(model.opset_import)
    outside = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    results = [value.name for value in graph.output]
    function = helper.make_function("own", "Encoder", outside, results, graph.node, opsets)
    call = helper.make_node("Encoder", outside, results, name="call", domain="own")
    outer = helper.make_graph([call], "calls", graph.input, graph.output, graph.initializer)
    return helper.make_model(outer, functions=[function], opset_imports=[*opsets, helper.make_opsetid("own", 1)], ir_version=10)


def in_branch(model):
    """Returns the same model, all nodes of which are in a branch of an If whose condition holds."""
    graph = model.graph
    nodes = list(graph.node)
    branch = helper.make_graph(nodes, "then", [], graph.output, [])
    zeros = [helper.make_node("Identity", ["nothing"], [value.name]) for value in graph.output]
    other = helper.make_graph(zeros, "else", [], graph.output, [])
    results = [f"{value.name}_chosen" for value in graph.output]
    choice = helper.make_node("If", ["holds"], results, name="choice", then_branch=branch, else_branch=other)
    held = [numpy_helper.from_array(np.array(True), "holds"), numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "nothing")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in results]
    outer = helper.make_graph([choice], "chooses", graph.input, outputs, [*graph.initializer, *held])
    return helper.make_model(outer, opset_imports=model.opset_import, ir_version=10)


def quantized(model):
    """Returns the same model with weights of 8 bits, those of R with a scale for each row."""
    nodes, held = [], []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name[0] not in "WR":
            held.append(tensor)
            continue
        per_row = tensor.name[0] == "R" and array.shape[0] == 1
        largest = np.abs(array).max(axis=(0, 2)) if per_row else np.abs(array).max()
        scale, zero = (largest / 127).astype(np.float32), np.zeros_like(largest, np.int8)
        rows = scale[None, :, None] if per_row else scale
        parts = {"q": np.round(array / rows).astype(np.int8), "s": scale, "z": zero}
        held += [numpy_helper.from_array(part, f"{tensor.name}_{name}") for name, part in parts.items()]
        inputs = [f"{tensor.name}_{name}" for name in parts]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [tensor.name], axis=1))
    graph = model.graph
    graph = helper.make_graph([*nodes, *graph.node], "quantized", graph.input, graph.output, held)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)


FORMS = {"a function": in_function, "a branch": in_branch, "8 bits": quantized}


def check_forms(binary, devices, folder):
    """Compares models whose GRUs are in functions and inner graphs, or whose weights are quantized."""
    count = 0
    plain = {"T": 5, "B": 3, "I": 4, "H": 7, "bias": True, "h0": True, "lengths": True, "opset": 17}
    for direction, after, layers in itertools.product(DIRECTIONS, (0, 1), (1, 2)):
        case = {**plain, "direction": direction, "after": after, "layers": layers}
        model, feeds, arrays = model_of(case)
        np.save(folder / "x.npy", feeds["x"])
        options = ["--input", folder / "x.npy", "--output", folder / "y.npy", "--hn", folder / "hn.npy"]
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
            options += [f"--{name}", folder / f"{name}.npy"]
        for form, made in FORMS.items():
            onnx.save(made(model), folder / "form.onnx")
            expected_y, expected_h_n = run_onnxruntime(folder / "form.onnx", feeds)
            for device in devices:
                gru(binary, "run", folder / "form.onnx", *options, "--device", device)
                compare(f"{form}, {device}", np.load(folder / "y.npy"), expected_y, case)
                compare(f"{form}, {device}", np.load(folder / "hn.npy"), expected_h_n, case)
            count += 1
    return count


FUNCTIONS = {  # their alpha and beta
    "Sigmoid": ([], []),
    "Tanh": ([], []),
    "Relu": ([], []),
    "HardSigmoid": ([0.3], [0.4]),
    "Affine": ([0.7], [0.1]),
    "ScaledTanh": ([1.3], [0.8]),
    "LeakyRelu": ([0.2], []),
    "ThresholdedRelu": ([0.1], []),
    "Elu": ([0.6], []),
    "Softsign": ([], []),
    "Softplus": ([], []),
}


def activation_cases(plain):
    """Every function as a gate and as the candidate, with and without a clip, and different ones in the directions."""

    def chosen(*names):
        numbers = [sum((FUNCTIONS[name][i] for name in names), []) for i in (0, 1)]
        return {"activations": [*names], "activation_alpha": numbers[0], "activation_beta": numbers[1]}

    for i, name in enumerate(FUNCTIONS):
        clip = 0.5 if i % 2 else None
        yield {**plain, "after": i % 2, "direction": "forward", **chosen("Sigmoid", name), "clip": clip}
        yield {**plain, "after": 1 - i % 2, "direction": "reverse", **chosen(name, "Tanh"), "clip": clip}
    both = {**plain, "direction": "bidirectional", "each_direction": True, "lengths": True}
    for i in range(8):
        names = [str(name) for name in rng.choice([*FUNCTIONS], 4)]
        yield {**both, "after": i % 2, "layers": 1 + i // 4, **chosen(*names), "clip": [None, 0.3, 2.0][i % 3]}
    defaults = {"activations": ["HardSigmoid", "LeakyRelu"]}
    yield {**plain, "after": 0, "direction": "bidirectional", "layers": 2, **defaults}
    yield {**plain, "after": 1, "direction": "forward", "activations": ["Sigmoid", "Elu"]}


def read_cases():
    plain = {"T": 5, "B": 3, "I": 4, "H": 7, "layers": 1, "bias": True, "h0": True, "lengths": False, "opset": 14}
    for after, direction in itertools.product((0, 1), DIRECTIONS):
        for h0, lengths in itertools.product((False, True), repeat=2):
            yield {**plain, "after": after, "direction": direction, "h0": h0, "lengths": lengths}
        yield {**plain, "after": after, "direction": direction, "layers": 3, "bias": False, "H": 5, "opset": 22}
    yield from activation_cases(plain)
    for _ in range(12):
        t, b, i, h = (int(rng.integers(1, 20)) for _ in range(4))
        layers, after, bias, h0, lengths = (int(rng.integers(low, 2 + low)) for low in (1, 0, 0, 0, 0))
        direction = rng.choice([*DIRECTIONS])
        sizes = {"T": t, "B": b, "I": i, "H": h, "layers": layers, "opset": int(rng.integers(14, 23))}
        yield {**sizes, "after": after, "direction": str(direction), "bias": bool(bias), "h0": bool(h0), "lengths": bool(lengths)}
    yield {**plain, "T": 1, "B": 1, "I": 1, "H": 1, "after": 1, "direction": "forward"}
    yield {**plain, "T": 3, "B": 17, "I": 33, "H": 31, "after": 0, "direction": "bidirectional", "lengths": True}


def check_reading(binary, devices, folder):
    count = 0
    for case in read_cases():
        model, feeds, arrays = model_of(case)
        onnx.save(model, folder / "model.onnx")
        expected_y, expected_h_n = run_onnxruntime(folder / "model.onnx", feeds)
        np.save(folder / "x.npy", feeds["x"])
        options = []
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
            options += [f"--{name}", folder / f"{name}.npy"]
        outputs = ["--input", folder / "x.npy", "--output", folder / "y.npy", "--hn", folder / "hn.npy"]
        for device in devices:
            gru(binary, "run", folder / "model.onnx", *outputs, *options, "--device", device)
            compare(f"read, {device}", np.load(folder / "y.npy"), expected_y, case)
            compare(f"read, {device}", np.load(folder / "hn.npy"), expected_h_n, case)
        if case["layers"] == 1:
            # ONNX Runtime does not support layout 1; compare with layout 0.
            onnx.save(batch_first(model, case, arrays), folder / "first.onnx")
            gru(binary, "run", folder / "first.onnx", *outputs, "--device", "cpu")
            compare("layout 1, cpu", np.load(folder / "y.npy"), expected_y, case)
        count += 1
    return count


def chains():
    """Returns the nodes between a GRU's Y [5, D, 3, 4] and the next GRU's X, and whether the two are layers of one stack."""
    squeeze = lambda axes: [("Squeeze", ["Y", axes], {})]
    turned = ("Transpose", ["Y"], {"perm": [0, 2, 1, 3]})
    reshape = lambda *shape: [turned, ("Reshape", ["-", np.array(shape)], {})]
    sizes = [turned, ("Shape", ["-"], {}), ("Slice", ["-", np.array([0]), np.array([2])], {})]
    computed = [*sizes, ("Concat", ["-", np.array([-1])], {"axis": 0}), ("Reshape", ["0", "-"], {})]
    swapped = [turned, ("Shape", ["-"], {}), ("Gather", ["-", np.array([1, 0])], {}), *computed[3:]]
    for d in (1, 2):
        yield d, reshape(0, 0, -1), True
        yield d, reshape(0, 0, 4 * d), True
        yield d, reshape(0, -1, 4 * d), True
        yield d, reshape(-1, 0, 4 * d), True
        yield d, computed, True
        yield d, swapped, False
        yield d, reshape(3, 5, 4 * d), False
        yield d, reshape(1, -1, 4 * d), False
        yield d, reshape(-1, 1, 4 * d), False
        yield d, [*reshape(0, 0, -1), ("Relu", ["-"], {})], False
        yield d, [*reshape(0, 0, -1), ("Identity", ["-"], {}), ("Dropout", ["-"], {})], True
        yield d, [*reshape(0, 0, -1), ("Transpose", ["-"], {"perm": [1, 0, 2]})], False
        yield d, [*reshape(0, 0, -1), *[("Transpose", ["-"], {"perm": [1, 0, 2]})] * 2], True
    yield 1, squeeze(np.array([1])), True
    yield 1, squeeze(np.array([-3])), True
    yield 1, [("Reshape", ["Y", np.array([0, -1, 4])], {})], True
    yield 1, [("Reshape", ["Y", np.array([3, 5, 4])], {})], False
    yield 1, [("Reshape", ["Y", np.array([0, 0, -1])], {})], False


def check_chains(binary, folder):
    """Checks that two GRUs load as one stack with ONNX Runtime's numbers, or as two single GRUs, and nothing else."""
    count = 0
    x = uniform(5, 3, 4)
    np.save(folder / "x.npy", x)
    for d, way, is_stack in chains():
        direction = "forward" if d == 1 else "bidirectional"
        attributes = {"hidden_size": 4, "direction": direction}
        held = {f"{name}{i}": uniform(d, 12, 4 if name == "R" or i == 0 else 4 * d) for name in "WR" for i in (0, 1)}
        nodes, values = [helper.make_node("GRU", ["x", "W0", "R0"], ["Y"], name="first", **attributes)], []
        for i, (op, inputs, more) in enumerate(way):
            names = []
            for j, name in enumerate(inputs):
                if isinstance(name, np.ndarray):
                    held[f"c{i}_{j}"] = name
                    name = f"c{i}_{j}"
                names.append({"-": f"v{i - 1}"}.get(name, f"v{name}" if name.isdigit() else name))
            nodes.append(helper.make_node(op, names, [f"v{i}"], **more))
        nodes.append(helper.make_node("GRU", [f"v{len(way) - 1}", "W1", "R1"], ["Z"], name="second", **attributes))
        tensors = [numpy_helper.from_array(array, name) for name, array in held.items()]
        info = lambda name, axes: helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * axes)
        graph = helper.make_graph(nodes, "chain", [info("x", 3)], [info("Z", 4)], tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "chain.onnx")
        case = {"after": 0, "direction": direction, "way": way}
        command = [binary, "run", folder / "chain.onnx", "--input", folder / "x.npy", "--output", folder / "y.npy", "--device", "cpu"]
        result = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if is_stack:
            assert result.returncode == 0, (case, result.stderr)
            (z,) = run_onnxruntime(folder / "chain.onnx", {"x": x})
            compare("chains, cpu", np.load(folder / "y.npy"), z.transpose(0, 2, 1, 3).reshape(5, 3, -1), case)
        else:
            assert "holds 2 GRUs; choose one by its node: `first`, `second`" in result.stderr, (case, result.stderr)
        count += 1
    return count


def parameters(case):
    """Returns PyTorch's tensors for a definition, and the metadata that names the definition."""
    directions = {"forward": [""], "reverse": ["_reverse"], "both": ["", "_reverse"]}[case["direction"]]
    h, bound, tensors = case["H"], 1 / np.sqrt(case["H"]), {}
    for layer, way in itertools.product(range(case["layers"]), directions):
        width = case["I"] if layer == 0 else h * len(directions)
        tensors[f"weight_ih_l{layer}{way}"] = uniform(3 * h, width, bound=bound)
        tensors[f"weight_hh_l{layer}{way}"] = uniform(3 * h, h, bound=bound)
        for kind in {"none": [], "one": ["ih"], "two": ["ih", "hh"]}[case["bias"]]:
            tensors[f"bias_{kind}_l{layer}{way}"] = uniform(3 * h, bound=bound)
    words = {**case, "input": case["I"], "hidden": h, "dropout": 0, "zoneout": 0}
    keys = "input hidden layers direction reset update bias gate candidate dropout zoneout".split()
    keys += [key for key in ("reverse-gate", "reverse-candidate", "clip") if key in case]
    return tensors, {"gru_wgpu.config": " ".join(f"{key}={words[key]}" for key in keys)}


WRITTEN = ("identity", "affine(0.3,-0.1)", "scaled-tanh(1.5,0.6)", "leaky-relu(0.1)", "thresholded-relu(0.2)")
WRITTEN += ("elu(0.7)", "softsign", "softplus")


def write_cases():
    sizes = {"I": 3, "H": 5, "gate": "sigmoid", "candidate": "tanh"}
    axes = (("before", "after"), ("overwrites", "keeps"), ("none", "one", "two"), ("forward", "reverse", "both"), (1, 2))
    for reset, update, bias, direction, layers in itertools.product(*axes):
        yield {**sizes, "reset": reset, "update": update, "bias": bias, "direction": direction, "layers": layers}
    variant = {"reset": "before", "update": "overwrites", "bias": "two", "direction": "both", "layers": 2}
    for gate in ("sigmoid", "hard-sigmoid(0.2,0.5)", "hard-sigmoid(0.3,0.5)", "affine(0.2,0.5)"):
        yield {**sizes, **variant, "gate": gate, "candidate": "relu", "clip": 0.8}
    for candidate in WRITTEN:
        yield {**sizes, **variant, "candidate": candidate}
        other = {"reverse-gate": "hard-sigmoid(0.1,0.5)", "reverse-candidate": candidate}
        yield {**sizes, **variant, **other, "reset": "after", "clip": 0.4}
        yield {**sizes, **variant, "update": "keeps", "gate": candidate, "direction": "forward"}


def check_writing(binary, folder):
    count = 0
    for number, case in enumerate(write_cases()):
        tensors, metadata = parameters(case)
        save_file(tensors, folder / "model.safetensors", metadata)
        d, t, b = 2 if case["direction"] == "both" else 1, 4, 3
        feeds, options, inputs = {"x": uniform(t, b, case["I"])}, [], []
        if number % 2:
            feeds["h0"] = uniform(case["layers"] * d, b, case["H"])
            options, inputs = [*options, "--h0", folder / "h0.npy"], [*inputs, "--with-h0"]
        if number % 3:
            # A row of length 0 keeps its first state, also in the written model.
            feeds["lengths"] = rng.integers(0, t + 1, b).astype(np.int32)
            options, inputs = [*options, "--lengths", folder / "lengths.npy"], [*inputs, "--with-lengths"]
        for name, array in feeds.items():
            np.save(folder / f"{name}.npy", array)
        gru(binary, "convert", folder / "model.safetensors", folder / "written.onnx", *inputs)
        onnx.checker.check_model(str(folder / "written.onnx"), full_check=True)
        y, h_n = run_onnxruntime(folder / "written.onnx", feeds)
        outputs = ["--input", folder / "x.npy", "--output", folder / "y.npy", "--hn", folder / "hn.npy"]
        gru(binary, "run", folder / "model.safetensors", *outputs, *options, "--device", "cpu")
        compare("written", y, np.load(folder / "y.npy"), case)
        compare("written", h_n, np.load(folder / "hn.npy"), case)
        # Converted back, it must be the same bits.
        gru(binary, "convert", folder / "written.onnx", folder / "back.safetensors")
        assert (folder / "back.safetensors").read_bytes() == rewritten(binary, folder), case
        count += 1
    return count


def rewritten(binary, folder):
    """Returns the original model as the program writes it."""
    gru(binary, "convert", folder / "model.safetensors", folder / "again.safetensors")
    return (folder / "again.safetensors").read_bytes()


def all_devices(binary):
    """Returns the CPU and an adapter: a hardware GPU if there is one."""
    info = json.loads(subprocess.run([binary, "info", "--json"], capture_output=True, check=True).stdout)
    software = [adapter["software"] for adapter in info["adapters"]]
    return ["cpu", *(["gpu"] if not all(software) else ["software"] if software else [])]


def main():
    binary = sys.argv[1]
    devices = sys.argv[2:] or all_devices(binary)
    with tempfile.TemporaryDirectory() as folder:
        read = check_reading(binary, devices, pathlib.Path(folder))
        chained = check_chains(binary, pathlib.Path(folder))
        formed = check_forms(binary, devices, pathlib.Path(folder))
        written = check_writing(binary, pathlib.Path(folder))
    print(f"ONNX Runtime {onnxruntime.__version__}: {read} models read, {chained} chains, {formed} in functions, branches or 8 bits, {written} written; all agree to {ATOL:g}")
    print("largest difference of y and h_n, by definition and direction")
    columns = sorted({what for of_variant in worst.values() for what in of_variant})
    print(f"{'reset, update, direction':<28}" + "".join(f"{column:>16}" for column in columns))
    for words, of_variant in sorted(worst.items()):
        figures = (f"{of_variant[column]:.1e}" if column in of_variant else "-" for column in columns)
        print(f"{', '.join(words):<28}" + "".join(f"{figure:>16}" for figure in figures))


main()
