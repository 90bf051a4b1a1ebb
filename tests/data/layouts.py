"""Writes the files of tests/data/layouts that tests/formats/weight_layouts.rs reads: models of Keras, Flax and MLX as these
frameworks name their arrays, each with what its framework makes of it.

    pip install numpy keras flax "mlx[cpu]" && python tests/data/layouts.py

    NAME.npz, .safetensors    the weights of a model with several layers
    NAME.expected.npz         x [T, B, I], and y [T, B, D·H] of each layer or stack by its prefix

Made with keras 3.15, flax 0.12, mlx 0.32.
"""

import os
import pathlib

os.environ["KERAS_BACKEND"] = "numpy"

import flax.linen as nn
import jax
import keras
import mlx.core as mx
import mlx.nn
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict
from mlx.utils import tree_flatten

HERE = pathlib.Path(__file__).parent / "layouts"
T, B, I, H = 5, 2, 3, 4
rng = np.random.default_rng(7)


def uniform(*shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


X = uniform(B, T, I)


def expect(name, outputs):
    outputs = {key: np.asarray(y).swapaxes(0, 1) for key, y in outputs.items()}
    np.savez(HERE / f"{name}.expected.npz", x=X.swapaxes(0, 1), **outputs)


def keras_model():
    """One layer after the other reads x, so that each has an output of its own; the last two are also a stack."""
    gru = keras.layers.GRU
    kinds = {
        "encoder": gru(H, return_sequences=True, name="encoder"),
        "both": keras.layers.Bidirectional(gru(H, return_sequences=True, reset_after=False, name="inner"), name="both"),
        "plain": gru(H, return_sequences=True, use_bias=False, name="plain"),
        "old": gru(H, return_sequences=True, use_bias=False, reset_after=False, name="old"),
        "first": gru(H, return_sequences=True, name="first"),
    }
    x = keras.Input((None, I))
    outputs = {name: layer(x) for name, layer in kinds.items()}
    outputs["first,second"] = gru(H, return_sequences=True, name="second")(outputs["first"])
    outputs["lstm"] = keras.layers.LSTM(H, return_sequences=True, name="lstm")(x)
    outputs["dense"] = keras.layers.Dense(H, name="dense")(x)
    cells = [keras.layers.GRUCell(H, name="gru_cell"), keras.layers.GRUCell(H, name="gru_cell_1")]
    cells = keras.layers.RNN(cells, return_sequences=True, name="cells")
    outputs["cells/stacked_rnn_cells/gru_cell,cells/stacked_rnn_cells/gru_cell_1"] = cells(x)
    model = keras.Model(x, outputs)
    model.set_weights([uniform(*w.shape) for w in model.weights])
    np.savez(HERE / "keras.npz", **{w.path: w.numpy() for w in model.weights})
    # The names of TensorFlow's own Keras.
    np.savez(HERE / "keras_old.npz", **{f"{w.path}:0": w.numpy() for w in model.get_layer("both").weights})
    y = model(X)
    del y["lstm"], y["dense"]
    expect("keras", y)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        first = nn.RNN(nn.GRUCell(H))(x)
        second = nn.RNN(nn.GRUCell(H))(first)
        both = nn.Bidirectional(nn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H)))(x)
        # Cells of other kinds, with similar names.
        nn.RNN(nn.MGUCell(H))(x), nn.RNN(nn.OptimizedLSTMCell(H))(x), nn.Dense(H)(x)
        return {"GRUCell_0": first, "GRUCell_0,GRUCell_1": second, "GRUCell_2+GRUCell_3": both}


def flax_models():
    model = Linen()
    params = jax.tree.map(lambda w: uniform(*w.shape), model.init(jax.random.key(0), X)["params"])
    np.savez(HERE / "flax.npz", **flatten_dict(params, sep="/"))
    expect("flax", model.apply({"params": params}, X))
    rngs = nnx.Rngs(0)
    rnns = [nnx.RNN(nnx.GRUCell(I, H, rngs=rngs)), nnx.RNN(nnx.GRUCell(H, H, rngs=rngs))]
    other = nnx.RNN(nnx.OptimizedLSTMCell(I, H, rngs=rngs))
    model = nnx.Sequential(*rnns, other)
    nnx.update(model, jax.tree.map(lambda w: uniform(*w.shape), nnx.state(model, nnx.Param)))
    np.savez(HERE / "nnx.npz", **{".".join(map(str, path)): v[...] for path, v in nnx.state(model, nnx.Param).flat_state()})
    first = rnns[0](X)
    expect("nnx", {"layers.0.cell": first, "layers.0.cell,layers.1.cell": rnns[1](first)})


class Mlx(mlx.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [mlx.nn.GRU(I, H), mlx.nn.GRU(H, H)]
        self.plain = mlx.nn.GRU(I, H, bias=False)
        self.lstm, self.rnn = mlx.nn.LSTM(I, H), mlx.nn.RNN(I, H)


def mlx_model():
    model, x = Mlx(), mx.array(X)
    model.load_weights([(name, mx.array(uniform(*w.shape))) for name, w in tree_flatten(model.parameters())])
    model.save_weights(str(HERE / "mlx.npz"))
    model.save_weights(str(HERE / "mlx.safetensors"))
    first = model.layers[0](x)
    expect("mlx", {"layers.0": first, "layers.0,layers.1": model.layers[1](first), "plain": model.plain(x)})


HERE.mkdir(exist_ok=True)
keras_model()
flax_models()
mlx_model()
for path in HERE.iterdir():
    path.chmod(0o644)
    print(path.name, path.stat().st_size, "bytes")
