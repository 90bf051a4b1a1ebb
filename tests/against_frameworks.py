"""Compares `gru` with Keras, Flax and MLX, both ways, through .npz and .safetensors files in their layouts.

    pip install numpy keras flax "mlx[cpu]" && python tests/against_frameworks.py target/debug/gru

The framework's weights are written as docs/models.md says, run by `gru run`, converted by `gru convert`, and loaded into
the framework again. A framework that is not installed is left out.
"""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("KERAS_BACKEND", "numpy")

import numpy as np

GRU = pathlib.Path(sys.argv[1]).resolve()
T, B, I, H = 7, 3, 5, 6
rng = np.random.default_rng(5)
worst = {}
counts = {}


def uniform(*shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def gru(*arguments):
    result = subprocess.run([GRU, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, (arguments, result.stderr)
    return result.stderr


def compare(framework, got, expected):
    assert got.shape == expected.shape, (framework, got.shape, expected.shape)
    error = float(np.abs(got - expected).max())
    worst[framework] = max(worst.get(framework, 0), error)
    counts[framework] = counts.get(framework, 0) + 1
    assert error < 2e-6, (framework, error)


def run(model, x, *options):
    """Returns y of x [B, T, I]."""
    np.save("x.npy", x)
    gru("run", model, "--input", "x.npy", "--output", "y.npy", "--batch-first", "--device", "cpu", *options)
    return np.load("y.npy")


def keras_models():
    import keras

    grid = itertools.product((True, False), (True, False), (False, True), (1, 2))
    for after, bias, both, layers in grid:
        def layer():
            layer = keras.layers.GRU(H, return_sequences=True, reset_after=after, use_bias=bias)
            return keras.layers.Bidirectional(layer) if both else layer

        model = keras.Sequential([keras.Input((None, I)), *(layer() for _ in range(layers))])
        model.set_weights([uniform(*w.shape) for w in model.weights])
        x = uniform(B, T, I)
        y = np.asarray(model(x))
        np.savez("keras.npz", **{w.path: w.numpy() for w in model.weights})
        prefix = ["--prefix", ",".join(l.path if hasattr(l, "path") else f"{model.name}/{l.name}" for l in model.layers)]
        reset = [] if bias else ["--reset", "after" if after else "before"]
        compare("Keras", run("keras.npz", x, *prefix, *reset), y)
        weights = model.get_weights()
        for middle in ("middle.npz", "middle.safetensors"):
            gru("convert", "keras.npz", middle, *prefix, *reset)
            gru("convert", middle, "back.npz", "--output-layout", "keras")
            compare("Keras", run("back.npz", x), y)
            model.set_weights(list(np.load("back.npz").values()))
            assert all(np.array_equal(one, other) for one, other in zip(model.get_weights(), weights))
            compare("Keras", np.asarray(model(x)), y)
        # The whole model's file: the message has two lines of Python that work.
        if layers == 2 and bias:
            model.save("saved.keras")
            model.save_weights("saved.weights.h5")
            for file in ("saved.keras", "saved.weights.h5"):
                message = subprocess.run([GRU, "check", file], capture_output=True, text=True).stderr
                lines = message.split("in Python: ")[1].strip().split("`, then `")
                names = {"keras": keras, "numpy": np, "model": model}
                for line in lines:
                    exec(line.strip("`"), names)
                # The paths of a model of load_model leave out its own name and those of Bidirectional.
                files = np.load("saved.npz").files
                names = list(dict.fromkeys(name.rsplit("/gru_cell/")[0] for name in files))
                halves = [names[at : at + 1 + both] for at in range(0, len(names), 1 + both)]
                compare("Keras", run("saved.npz", x, "--prefix", ",".join("+".join(half) for half in halves)), y)
                os.remove("saved.npz")


def keras_activations():
    """The arrays do not tell the activations; options do."""
    import keras

    for gate, candidate, options in (
        ("hard_sigmoid", "relu", ["--gate", f"hard-sigmoid({1 / 6:.8f},0.5)", "--candidate", "relu"]),
        ("tanh", "softsign", ["--gate", "tanh", "--candidate", "softsign"]),
        ("sigmoid", "elu", ["--candidate", "elu(1)"]),
    ):
        layer = keras.layers.GRU(H, return_sequences=True, recurrent_activation=gate, activation=candidate)
        model = keras.Sequential([keras.Input((None, I)), layer])
        model.set_weights([uniform(*w.shape) / 2 for w in model.weights])
        x = uniform(B, T, I)
        np.savez("keras.npz", **{w.path: w.numpy() for w in model.weights})
        compare("Keras", run("keras.npz", x, *options), np.asarray(model(x)))
        gru("convert", "keras.npz", "middle.safetensors", *options)
        compare("Keras", run("middle.safetensors", x), np.asarray(model(x)))


def flax_models():
    import flax.linen as nn
    import jax
    from flax import nnx
    from flax.traverse_util import flatten_dict, unflatten_dict

    class Stack(nn.Module):
        layers: int
        both: bool

        @nn.compact
        def __call__(self, x):
            for _ in range(self.layers):
                if self.both:
                    x = nn.Bidirectional(nn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H)))(x)
                else:
                    x = nn.RNN(nn.GRUCell(H))(x)
            return x

    for layers, both in itertools.product((1, 2), (False, True)):
        model, x = Stack(layers, both), uniform(B, T, I)
        params = jax.tree.map(lambda w: uniform(*w.shape), model.init(jax.random.key(0), x)["params"])
        y = np.asarray(model.apply({"params": params}, x))
        cells = [f"GRUCell_{cell}" for cell in range(layers * (1 + both))]
        prefix = ",".join("+".join(cells[at : at + 1 + both]) for at in range(0, len(cells), 1 + both))
        for separator in "/.":
            np.savez("flax.npz", **flatten_dict(params, sep=separator))
            compare("Flax", run("flax.npz", x, "--prefix", prefix), y)
        for middle in ("middle.npz", "middle.safetensors"):
            gru("convert", "flax.npz", middle, "--prefix", prefix)
            gru("convert", middle, "back.npz", "--output-layout", "flax")
            compare("Flax", run("back.npz", x), y)
            back = unflatten_dict(dict(np.load("back.npz")), sep="/")
            back = back if len(cells) > 1 else {"GRUCell_0": back}
            assert jax.tree.all(jax.tree.map(np.array_equal, back, params))
            compare("Flax", np.asarray(model.apply({"params": back}, x)), y)

    for layers in (1, 2):
        stack = [nnx.RNN(nnx.GRUCell(H if layer else I, H, rngs=nnx.Rngs(layer))) for layer in range(layers)]
        model, x = nnx.Sequential(*stack), uniform(B, T, I)
        state = jax.tree.map(lambda w: uniform(*w.shape), nnx.state(model, nnx.Param))
        nnx.update(model, state)
        y = np.asarray(model(x))
        flat = {".".join(map(str, key)): np.asarray(value[...]) for key, value in state.flat_state()}
        np.savez("nnx.npz", **flat)
        prefix = ",".join(sorted({name.split(".dense_")[0] for name in flat}))
        compare("Flax NNX", run("nnx.npz", x, "--prefix", prefix), y)


def mlx_models():
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    class Stack(nn.Module):
        def __init__(self, layers, bias):
            super().__init__()
            self.layers = [nn.GRU(H if layer else I, H, bias=bias) for layer in range(layers)]

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    for layers, bias in itertools.product((1, 2), (True, False)):
        model, x = Stack(layers, bias), uniform(B, T, I)
        weights = [(name, mx.array(uniform(*w.shape))) for name, w in tree_flatten(model.parameters())]
        model.load_weights(weights)
        y = np.asarray(model(mx.array(x)))
        prefix = ",".join(f"layers.{layer}" for layer in range(layers))
        for file in ("mlx.npz", "mlx.safetensors"):
            model.save_weights(file)
            compare("MLX", run(file, x, "--prefix", prefix), y)
            gru("convert", file, "middle.safetensors", "--prefix", prefix)
            for back in ("back.npz", "back.safetensors"):
                gru("convert", "middle.safetensors", back, "--output-layout", "mlx")
                compare("MLX", run(back, x), y)
                other = Stack(layers, bias)
                (other if layers > 1 else other.layers[0]).load_weights(back)
                pairs = zip(tree_flatten(other.parameters()), tree_flatten(model.parameters()))
                assert all(one[0] == two[0] and mx.array_equal(one[1], two[1]) for one, two in pairs)
                compare("MLX", np.asarray(other(mx.array(x))), y)


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    for models in (keras_models, keras_activations, flax_models, mlx_models):
        try:
            models()
        except ImportError as error:
            print(f"left out: {error}")
for framework, error in worst.items():
    print(f"{framework}: {counts[framework]} comparisons, largest difference {error:.1e}")
