"""Writes the model files of tests/data/models that tests/formats/models.rs reads, each with what its framework makes of it.

    pip install numpy torch onnx onnxscript safetensors keras scipy flax "mlx[cpu]" && python tests/data/models.py

    NAME.safetensors, .onnx, .npz   the weights, as torch, torch.onnx, onnx, Keras (NumPy backend), Flax and MLX hold them
    NAME.expected.npz               x, h0 and lengths where there are some, y, h_n: x [T, B, I], y [T, B, D·H]

Made with torch 2.15, onnx 1.23, keras 3.15, flax 0.12, mlx 0.30; the frameworks' numbers are single precision.
"""

import os
import pathlib

os.environ["KERAS_BACKEND"] = "numpy"

import flax.linen
import jax
import keras
import mlx.core
import mlx.nn
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "models"
T, B, I, H = 6, 3, 3, 5
rng = np.random.default_rng(3)
torch.manual_seed(3)


def uniform(*shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def expect(name, **arrays):
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    np.savez(HERE / f"{name}.expected.npz", **arrays)


def with_torch(name, gru, **inputs):
    """What an nn.GRU makes of x, packed by lengths where there are some."""
    x = torch.tensor(inputs["x"])
    h0 = torch.tensor(inputs["h0"]) if "h0" in inputs else None
    with torch.no_grad():
        if "lengths" in inputs:
            lengths = torch.tensor(inputs["lengths"]).long()
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            y, h_n = gru(packed, h0)
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
        else:
            y, h_n = gru(x, h0)
    inputs = {key: np.float32(value) for key, value in inputs.items()}
    expect(name, **inputs, y=y, h_n=h_n)


class Speech(torch.nn.Module):
    """A state dict with more than a GRU in it."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.ModuleDict({"gru": torch.nn.GRU(I, H, 2, bidirectional=True), "norm": torch.nn.LayerNorm(H)})
        self.decoder = torch.nn.GRUCell(I, H)
        self.small = torch.nn.GRU(I, H, bias=False)
        self.lstm = torch.nn.LSTM(I, H)
        self.rnn = torch.nn.RNN(I, H)


def state_dicts():
    model = Speech()
    save_file(model.state_dict(), HERE / "torch_speech.safetensors")
    x, h0 = uniform(T, B, I), uniform(4, B, H)
    with_torch("torch_speech.encoder", model.encoder["gru"], x=x, h0=h0, lengths=np.array([2, 6, 4], np.int32))
    h = torch.tensor(h0[0])
    with torch.no_grad():
        steps = [h := model.decoder(torch.tensor(step), h) for step in x]
    expect("torch_speech.decoder", x=x, h0=h0[:1], y=torch.stack(steps), h_n=steps[-1][None])
    with_torch("torch_speech.small", model.small, x=x)
    for dtype, name in ((torch.float16, "torch_f16"), (torch.bfloat16, "torch_bf16")):
        # What is expected starts from the very numbers that the file holds.
        narrow = {key: value.to(dtype) for key, value in model.small.state_dict().items()}
        save_file(narrow, HERE / f"{name}.safetensors")
        wide = torch.nn.GRU(I, H, bias=False)
        wide.load_state_dict({key: value.float() for key, value in narrow.items()})
        with_torch(name, wide, x=x)


class Denoiser(torch.nn.Module):
    """Two GRUs in a row between other layers, as nsnet has them."""

    def __init__(self):
        super().__init__()
        self.input, self.output = torch.nn.Linear(2, I), torch.nn.Linear(H, 2)
        self.gru1, self.gru2 = torch.nn.GRU(I, H, batch_first=True), torch.nn.GRU(H, H, batch_first=True)

    def forward(self, x):
        y, _ = self.gru1(torch.relu(self.input(x)))
        y, _ = self.gru2(y)
        return self.output(y)

    def stacked(self):
        gru = torch.nn.GRU(I, H, 2)
        parts = [(layer, part) for layer, part in enumerate((self.gru1, self.gru2))]
        gru.load_state_dict({key.replace("_l0", f"_l{l}"): v for l, part in parts for key, v in part.state_dict().items()})
        return gru


def without_traces(path, **external):
    """torch notes in every node where it was run; nobody else needs to know."""
    model = onnx.load(path)
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    for message in [*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    onnx.save(model, path, **external)


def torch_exports():
    """By torch's old exporter, which holds weights in the model, and by its new one, which puts them beside it; and by
    each where it leaves to nodes of the model what it does itself for small models: the gates' order, the shapes."""
    denoiser, both = Denoiser(), torch.nn.GRU(I, H, 2, bidirectional=True)
    steps, rows = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    exporters = {
        "torch_old": {"dynamo": False},
        "torch_new": {"dynamo": True},
        "torch_old_unfolded": {"dynamo": False, "do_constant_folding": False},
        "torch_new_dynamic": {"dynamo": True, "optimize": False},
    }
    for name, options in exporters.items():
        external, dynamic = name == "torch_new", name == "torch_new_dynamic"
        path = HERE / f"{name}_denoiser.onnx"
        shapes = {"dynamic_shapes": ({0: rows, 1: steps},)} if dynamic else {}
        torch.onnx.export(denoiser, (torch.zeros(2, T, 2),), path, opset_version=18, external_data=external, **options, **shapes)
        without_traces(path, **({"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 0} if external else {}))
        with_torch(f"{name}_denoiser", denoiser.stacked(), x=uniform(T, B, I))
        path = HERE / f"{name}_both.onnx"
        arguments = (torch.zeros(T, B, I), torch.zeros(4, B, H))
        shapes = {"dynamic_shapes": ({0: steps, 1: rows}, {1: rows})} if dynamic else {}
        torch.onnx.export(both, arguments, path, opset_version=18, input_names=["x", "h0"], external_data=False, **options, **shapes)
        without_traces(path)
        with_torch(f"{name}_both", both, x=uniform(T, B, I), h0=uniform(4, B, H))


def onnx_model(name, node, held, opset=22, kind=TensorProto.FLOAT):
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), key) for key, array in held.items()]
    x = helper.make_tensor_value_info("X", kind, [None] * 3)
    y = [helper.make_tensor_value_info(output, kind, [None] * axes) for output, axes in zip(node.output, (4, 3))]
    model = helper.make_model(helper.make_graph([node], name, [x], y, tensors), opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, HERE / f"{name}.onnx")
    return model


def onnx_nodes():
    """ONNX's own reference evaluator, which knows one direction and no lengths."""
    weights = {"W": uniform(1, 3 * H, I), "R": uniform(1, 3 * H, H), "B": uniform(1, 6 * H)}
    x, h0 = uniform(T, B, I), uniform(1, B, H)
    for after in (0, 1):
        name = f"onnx_{'after' if after else 'before'}"
        node = helper.make_node("GRU", ["X", "W", "R", "B", "", "h0"], ["Y", "Y_h"], name="the_gru", hidden_size=H, linear_before_reset=after)
        model = onnx_model(name, node, {**weights, "h0": h0})
        y, h_n = ReferenceEvaluator(model).run(None, {"X": x})
        expect(name, x=x, h0=h0, y=y[:, 0], h_n=h_n)
    node = helper.make_node("GRU", ["X", "W", "R"], ["Y", "Y_h"], hidden_size=H, layout=1)
    model = onnx_model("onnx_layout", node, {key: weights[key].astype(np.float64) for key in ("W", "R")}, kind=TensorProto.DOUBLE)
    plain = onnx_model("onnx_plain", helper.make_node("GRU", ["X", "W", "R"], ["Y", "Y_h"], hidden_size=H), {key: weights[key] for key in ("W", "R")}, 14)
    y, h_n = ReferenceEvaluator(plain).run(None, {"X": x})
    expect("onnx_layout", x=x, y=y[:, 0], h_n=h_n)
    expect("onnx_plain", x=x, y=y[:, 0], h_n=h_n)


def keras_layers():
    for after in (True, False):
        for both in (False, True):
            name = f"keras_{'after' if after else 'before'}{'_both' if both else ''}"
            layer = keras.layers.GRU(H, return_sequences=True, return_state=True, reset_after=after)
            layer = keras.layers.Bidirectional(layer) if both else layer
            x = uniform(T, B, I)
            layer.build((B, T, I))
            halves = [layer.forward_layer, layer.backward_layer] if both else [layer]
            for half in halves:
                half.cell.bias.assign(uniform(*half.cell.bias.shape))
            y, *states = layer(x.swapaxes(0, 1))
            arrays = {}
            for half, way in zip(halves, ("forward", "backward")):
                arrays |= {f"{way}/kernel": half.cell.kernel, f"{way}/recurrent_kernel": half.cell.recurrent_kernel, f"{way}/bias": half.cell.bias}
            np.savez_compressed(HERE / f"{name}.npz", **{key: np.asarray(value) for key, value in arrays.items()})
            expect(name, x=x, y=np.asarray(y).swapaxes(0, 1), h_n=np.stack([np.asarray(state) for state in states]))


def flax_cell():
    cell, x, h = flax.linen.GRUCell(H), uniform(T, B, I), uniform(B, H)
    params = cell.init(jax.random.key(3), h, x[0])
    params = jax.tree.map(lambda value: uniform(*value.shape) / 2, params)
    arrays = {f"{layer}/{key}": value for layer, tensors in params["params"].items() for key, value in tensors.items()}
    np.savez(HERE / "flax.npz", **arrays)
    steps = []
    state = h
    for step in x:
        state, y = cell.apply(params, state, step)
        steps.append(np.asarray(y))
    expect("flax", x=x, h0=h[None], y=np.stack(steps), h_n=steps[-1][None])


def mlx_layer():
    gru, x = mlx.nn.GRU(I, H), uniform(T, B, I)
    arrays = {key: uniform(*value.shape) / 2 for key, value in gru.parameters().items()}
    gru.update({key: mlx.core.array(value) for key, value in arrays.items()})
    np.savez(HERE / "mlx.npz", **arrays)
    y = np.asarray(gru(mlx.core.array(x.swapaxes(0, 1)))).swapaxes(0, 1)
    expect("mlx", x=x, y=y, h_n=y[-1:])


HERE.mkdir(exist_ok=True)
state_dicts()
torch_exports()
onnx_nodes()
keras_layers()
flax_cell()
mlx_layer()
for path in HERE.iterdir():
    path.chmod(0o644)
print(sum(path.stat().st_size for path in HERE.iterdir()), "bytes in", len(list(HERE.iterdir())), "files")
