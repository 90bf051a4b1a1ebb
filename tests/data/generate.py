"""Writes the expected numbers that tests/expected.rs holds the reference, the CPU and the GPU against.

    pip install numpy torch && python tests/data/generate.py

pytorch.json    torch.nn.GRU in double precision, with and without bias, stacked and in both directions: outputs, and
                autograd's gradients.
equations.json  every other variant: the equations of src/lib.rs stated once more in NumPy, in double precision.
                Gradients by complex steps, which are exact to rounding: f'(x) = Im f(x + 1e-30 i) / 1e-30.

The statement in NumPy is itself held against torch where torch has the variant. Inputs are rounded to float32, so
that a run in single precision starts from the very same numbers.
Made with numpy 2 and torch 2.15; other versions should give the same to the last few digits.
"""

import json
import pathlib

import numpy as np
import torch

T, B, I, H = 4, 2, 3, 5
HERE = pathlib.Path(__file__).parent


def hard_sigmoid(a):
    line = a / 5 + 0.5
    return np.where(line.real < 0, 0, np.where(line.real > 1, 1, line))


ACTIVATIONS = {  # of real and of complex numbers
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "relu": lambda a: np.where(a.real > 0, a, 0),
    "hard sigmoid": hard_sigmoid,
    "identity": lambda a: a,
}


def cell(p, name, x, valid, h, reset, update, gate, candidate):
    """The outputs [T, B, H] and the last state [B, H] of one direction of one layer, over the steps that are valid
    [T, B]; absent biases count as zeros."""
    w_ir, w_iz, w_in = np.split(p[f"weight_ih{name}"], 3)
    w_hr, w_hz, w_hn = np.split(p[f"weight_hh{name}"], 3)
    b_ir, b_iz, b_in = np.split(p.get(f"bias_ih{name}", np.zeros(3 * H)), 3)
    b_hr, b_hz, b_hn = np.split(p.get(f"bias_hh{name}", np.zeros(3 * H)), 3)
    f, g, y = ACTIVATIONS[gate], ACTIVATIONS[candidate], []
    for x_t, valid_t in zip(x, valid[:, :, None]):
        r = f(x_t @ w_ir.T + b_ir + h @ w_hr.T + b_hr)
        z = f(x_t @ w_iz.T + b_iz + h @ w_hz.T + b_hz)
        if reset == "before":
            n = g(x_t @ w_in.T + b_in + (r * h) @ w_hn.T + b_hn)
        else:
            n = g(x_t @ w_in.T + b_in + r * (h @ w_hn.T + b_hn))
        new = (1 - z) * h + z * n if update == "overwrites" else z * h + (1 - z) * n
        h = np.where(valid_t, new, h)
        y.append(np.where(valid_t, h, 0))
    return np.stack(y), h


def names(layers, directions):
    """The cells' names: layer-major, forward before reverse."""
    return [f"_l{l}{'_reverse' if d else ''}" for l in range(layers) for d in range(directions)]


def gru(p, x, h0, reset, update, gate, candidate, layers, directions, lengths):
    """y [T, B, D·H] and h_n [L·D, B, H] of a GRU with PyTorch-shaped parameters."""
    h_n, h0 = [], list(h0)
    valid = np.arange(T)[:, None] < np.array(lengths)[None, :]
    for layer in range(layers):
        halves = []
        for direction in range(directions):
            name = names(layers, directions)[layer * directions + direction]
            order = slice(None, None, -1 if direction else 1)
            y, last = cell(p, name, x[order], valid[order], h0.pop(0), reset, update, gate, candidate)
            h_n.append(last)
            halves.append(y[order])
        x = np.concatenate(halves, axis=-1)
    return x, np.stack(h_n)


def inputs(rng, bias, layers, directions):
    f = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32).astype(np.float64)
    p = {}
    for i, name in enumerate(names(layers, directions)):
        p[f"weight_ih{name}"] = f(3 * H, I if i < directions else directions * H)
        p[f"weight_hh{name}"] = f(3 * H, H)
        if bias in ("one", "two"):
            p[f"bias_ih{name}"] = f(3 * H)
        if bias == "two":
            p[f"bias_hh{name}"] = f(3 * H)
    states = (layers * directions, B, H)
    return p, {"x": f(T, B, I), "h0": f(*states), "dy": f(T, B, directions * H), "dh_n": f(*states)}


def by_equations(p, a, *variant):
    """Outputs, and the gradient of Σ dy·y + Σ dh_n·h_n by complex steps."""
    leaves = {**p, "x": a["x"], "h0": a["h0"]}

    def loss(leaves):
        y, h_n = gru(leaves, leaves["x"], leaves["h0"], *variant)
        return (a["dy"] * y).sum() + (a["dh_n"] * h_n).sum()

    grads = {}
    for name, value in leaves.items():
        grad = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[index] += 1e-30j
            grad[index] = loss({**leaves, name: moved}).imag / 1e-30
        grads[name] = grad
    return *gru(p, a["x"], a["h0"], *variant), grads


def by_torch(p, a, layers, directions, lengths):
    model = torch.nn.GRU(
        I, H, layers, bias="bias_ih_l0" in p, bidirectional=directions == 2, dtype=torch.float64
    )
    model.load_state_dict({k: torch.tensor(v) for k, v in p.items()})
    x, h0 = (torch.tensor(a[k], requires_grad=True) for k in ("x", "h0"))
    if lengths == [T] * B:
        y, h_n = model(x, h0)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        y, h_n = model(packed, h0)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    ((torch.tensor(a["dy"]) * y).sum() + (torch.tensor(a["dh_n"]) * h_n).sum()).backward()
    grads = {k: v.grad.numpy() for k, v in model.named_parameters()}
    y, h_n = y.detach().numpy(), h_n.detach().numpy()
    return y, h_n, {**grads, "x": x.grad.numpy(), "h0": h0.grad.numpy()}


def tensor(a):
    return {"shape": list(a.shape), "data": a.ravel().tolist()}


def write(name, cases):
    text = ",\n".join(json.dumps(case) for case in cases)
    (HERE / name).write_text("[\n" + text + "\n]\n")


def make(
    rng, reset, update, bias, layers=1, directions=1, gate="sigmoid", candidate="tanh", lengths=[T] * B
):
    """One case, and whether torch made it."""
    p, a = inputs(rng, bias, layers, directions)
    y, h_n, grads = by_equations(p, a, reset, update, gate, candidate, layers, directions, lengths)
    torch_has_it = (reset, update, gate, candidate) == ("after", "keeps", "sigmoid", "tanh") and bias != "one"
    if torch_has_it:
        torch_y, torch_h_n, torch_grads = by_torch(p, a, layers, directions, lengths)
        np.testing.assert_allclose(y, torch_y, rtol=1e-12)
        np.testing.assert_allclose(h_n, torch_h_n, rtol=1e-12)
        for k in grads:
            np.testing.assert_allclose(grads[k], torch_grads[k], rtol=1e-9, atol=1e-13)
        y, h_n, grads = torch_y, torch_h_n, torch_grads
    case = {
        "reset": reset, "update": update, "bias": bias, "layers": layers, "directions": directions,
        "gate": gate, "candidate": candidate, "lengths": lengths,
        "params": {k: tensor(v) for k, v in p.items()},
        "inputs": {k: tensor(v) for k, v in a.items()},
        "y": tensor(y),
        "h_n": tensor(h_n),
        "grads": {k: tensor(v) for k, v in grads.items()},
    }
    return case, torch_has_it


rng = np.random.default_rng(20240229)
variants = [(r, u, b) for r in ("before", "after") for u in ("overwrites", "keeps") for b in ("none", "one", "two")]
made = [make(rng, *variant) for variant in variants]
H, I = 3, 2  # several cells have many numbers
made += [make(rng, reset, update, "two", 2, 2) for reset, update, bias in variants if bias == "two"]
made += [make(rng, "after", "keeps", "two", 3, 1), make(rng, "after", "keeps", "none", 1, 2)]
made += [
    make(rng, "before", "keeps", "two", 2, 1, "sigmoid", "relu"),
    make(rng, "after", "overwrites", "two", 1, 2, "hard sigmoid", "tanh"),
    make(rng, "before", "overwrites", "one", 1, 1, "tanh", "identity"),
]
made += [
    make(rng, "after", "keeps", "two", 2, 2, lengths=[2, T]),  # torch wants at least 1
    make(rng, "before", "overwrites", "one", 2, 2, lengths=[T - 1, 0]),
    make(rng, "after", "overwrites", "two", 1, 2, lengths=[1, 3]),
    make(rng, "before", "keeps", "two", 1, 2, lengths=[0, 2]),
]
torch_cases = [case for case, by_torch in made if by_torch]
equation_cases = [case for case, by_torch in made if not by_torch]
write("pytorch.json", torch_cases)
write("equations.json", equation_cases)
print(len(torch_cases), "cases by torch,", len(equation_cases), "by the equations")
