"""Writes the expected numbers that tests/expected.rs holds the reference, the CPU and the GPU against.

    pip install numpy torch && python tests/data/generate.py

pytorch.json    torch.nn.GRU in double precision, with and without bias: outputs, and autograd's gradients.
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


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gru(p, x, h0, reset, update):
    """y [T, B, H] of a GRU with PyTorch-shaped parameters; absent biases count as zeros."""
    w_ir, w_iz, w_in = np.split(p["weight_ih_l0"], 3)
    w_hr, w_hz, w_hn = np.split(p["weight_hh_l0"], 3)
    b_ir, b_iz, b_in = np.split(p.get("bias_ih_l0", np.zeros(3 * H)), 3)
    b_hr, b_hz, b_hn = np.split(p.get("bias_hh_l0", np.zeros(3 * H)), 3)
    h, y = h0[0], []
    for x_t in x:
        r = sigmoid(x_t @ w_ir.T + b_ir + h @ w_hr.T + b_hr)
        z = sigmoid(x_t @ w_iz.T + b_iz + h @ w_hz.T + b_hz)
        if reset == "before":
            n = np.tanh(x_t @ w_in.T + b_in + (r * h) @ w_hn.T + b_hn)
        else:
            n = np.tanh(x_t @ w_in.T + b_in + r * (h @ w_hn.T + b_hn))
        h = (1 - z) * h + z * n if update == "overwrites" else z * h + (1 - z) * n
        y.append(h)
    return np.stack(y)


def inputs(rng, bias):
    f = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32).astype(np.float64)
    p = {"weight_ih_l0": f(3 * H, I), "weight_hh_l0": f(3 * H, H)}
    if bias in ("one", "two"):
        p["bias_ih_l0"] = f(3 * H)
    if bias == "two":
        p["bias_hh_l0"] = f(3 * H)
    return p, {"x": f(T, B, I), "h0": f(1, B, H), "dy": f(T, B, H), "dh_n": f(1, B, H)}


def by_equations(p, a, reset, update):
    """Outputs, and the gradient of Σ dy·y + Σ dh_n·h_n by complex steps."""
    leaves = {**p, "x": a["x"], "h0": a["h0"]}

    def loss(leaves):
        y = gru(leaves, leaves["x"], leaves["h0"], reset, update)
        return (a["dy"] * y).sum() + (a["dh_n"] * y[-1:]).sum()

    grads = {}
    for name, value in leaves.items():
        grad = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[index] += 1e-30j
            grad[index] = loss({**leaves, name: moved}).imag / 1e-30
        grads[name] = grad
    return gru(p, a["x"], a["h0"], reset, update), grads


def by_torch(p, a):
    cell = torch.nn.GRU(I, H, bias="bias_ih_l0" in p, dtype=torch.float64)
    cell.load_state_dict({k: torch.tensor(v) for k, v in p.items()})
    x, h0 = (torch.tensor(a[k], requires_grad=True) for k in ("x", "h0"))
    y, h_n = cell(x, h0)
    ((torch.tensor(a["dy"]) * y).sum() + (torch.tensor(a["dh_n"]) * h_n).sum()).backward()
    grads = {k: v.grad.numpy() for k, v in cell.named_parameters()}
    return y.detach().numpy(), {**grads, "x": x.grad.numpy(), "h0": h0.grad.numpy()}


def tensor(a):
    return {"shape": list(a.shape), "data": a.ravel().tolist()}


def write(name, cases):
    text = ",\n".join(json.dumps(case) for case in cases)
    (HERE / name).write_text("[\n" + text + "\n]\n")


rng = np.random.default_rng(20240229)
torch_cases, equation_cases = [], []
for reset in ("before", "after"):
    for update in ("overwrites", "keeps"):
        for bias in ("none", "one", "two"):
            p, a = inputs(rng, bias)
            y, grads = by_equations(p, a, reset, update)
            case = {"reset": reset, "update": update, "bias": bias}
            target = equation_cases
            if (reset, update) == ("after", "keeps") and bias != "one":
                torch_y, torch_grads = by_torch(p, a)
                np.testing.assert_allclose(y, torch_y, rtol=1e-12)
                for k in grads:
                    np.testing.assert_allclose(grads[k], torch_grads[k], rtol=1e-10, atol=1e-14)
                y, grads, target = torch_y, torch_grads, torch_cases
            target.append(case | {
                "params": {k: tensor(v) for k, v in p.items()},
                "inputs": {k: tensor(v) for k, v in a.items()},
                "y": tensor(y),
                "grads": {k: tensor(v) for k, v in grads.items()},
            })
write("pytorch.json", torch_cases)
write("equations.json", equation_cases)
print(len(torch_cases), "cases by torch,", len(equation_cases), "by the equations")
