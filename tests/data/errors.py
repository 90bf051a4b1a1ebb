"""Writes pytorch_errors.json: how far PyTorch's GRU in float32 on the CPU is from itself in float64.

    pip install numpy torch && python tests/data/errors.py

src/model/gru/exactness.rs runs the same cases and compares its own errors with these. Inputs come from a hash of their
index, so that no input is stored. An error is the root mean square over all elements of one kind (y, h_n, dx, dh0, and the
gradients of the weights and biases of all layers) and over all seeds of the case.
Made with torch 2.15 on two cores of an AMD Zen 4; another processor adds in another order and gives other errors.
"""

import json
import math
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent

CASES = [
    # name, T, B, I, H, layers, directions, gain of the weights, seeds
    ("short", 7, 3, 5, 11, 1, 1, 1.0, 32),
    ("usual", 40, 8, 30, 64, 1, 1, 1.0, 2),
    ("wide", 12, 4, 96, 200, 1, 1, 1.0, 1),
    ("large state", 5, 2, 30, 700, 1, 1, 1.0, 1),
    ("wide input", 5, 17, 700, 21, 1, 1, 1.0, 2),
    ("10,000 steps", 10_000, 1, 5, 16, 1, 1, 1.0, 2),
    ("10,000 rows", 1_000, 10, 6, 17, 1, 1, 1.0, 2),
    ("large pre-activations", 20, 6, 23, 37, 1, 1, 6.0, 8),
    ("two layers both ways", 30, 5, 13, 24, 2, 2, 1.0, 6),
]

# The arrays of a case, each with a hash of its own.
PARAMS, X, H0, DY, DH_N = range(5)


def numbers(seed, array, shape, scale=1.0):
    """float32 numbers in [-scale, scale) from a hash of their index."""
    count = math.prod(shape)
    word = np.arange(count, dtype=np.uint32) + np.uint32((seed * 8 + array + 1) * 0x9E3779B9 & 0xFFFFFFFF)
    for shift, factor in [(16, 0x21F0AAAD), (15, 0xD35A2D97)]:
        word = (word ^ (word >> np.uint32(shift))) * np.uint32(factor)
    word ^= word >> np.uint32(15)
    unit = (word >> np.uint32(8)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return (unit * np.float32(scale)).reshape(shape)


def run(case, seed, dtype):
    """Returns the arrays of one kind, joined, by kind."""
    _, steps, batch, inputs, hidden, layers, directions, gain, _ = case
    gru = torch.nn.GRU(inputs, hidden, layers, bidirectional=directions == 2).to(dtype)
    flat = numbers(seed, PARAMS, [sum(p.numel() for p in gru.parameters())], scale(case))
    with torch.no_grad():
        for parameter in gru.parameters():
            part, flat = np.split(flat, [parameter.numel()])
            parameter.copy_(torch.from_numpy(part).reshape(parameter.shape))
    state = [layers * directions, batch, hidden]
    arrays = [(X, [steps, batch, inputs]), (H0, state), (DY, [steps, batch, directions * hidden]), (DH_N, state)]
    x, h0, dy, dh_n = (torch.from_numpy(numbers(seed, *array)).to(dtype) for array in arrays)
    x.requires_grad_()
    h0.requires_grad_()
    y, h_n = gru(x, h0)
    torch.autograd.backward([y, h_n], [dy, dh_n])
    results = {"y": [y], "h_n": [h_n], "dx": [x.grad], "dh0": [h0.grad]}
    for name, parameter in gru.named_parameters():
        results.setdefault("d" + name.split("_l")[0], []).append(parameter.grad)
    return {kind: torch.cat([part.detach().double().flatten() for part in parts]) for kind, parts in results.items()}


def scale(case):
    _, _, _, _, hidden, _, _, gain, _ = case
    return float(np.float32(gain / math.sqrt(hidden)))


def root_mean_square(arrays):
    return torch.cat(arrays).square().mean().sqrt().item()


def measure(case):
    errors, values = {}, {}
    for seed in range(case[-1]):
        single, double = run(case, seed, torch.float32), run(case, seed, torch.float64)
        for kind, value in double.items():
            errors.setdefault(kind, []).append(single[kind] - value)
            values.setdefault(kind, []).append(value)
    name, steps, batch, inputs, hidden, layers, directions, _, seeds = case
    return {
        "name": name, "sizes": [steps, batch, inputs, hidden], "layers": layers, "directions": directions,
        "scale": scale(case), "seeds": seeds,
        "errors": {kind: float(f"{root_mean_square(parts):.4g}") for kind, parts in errors.items()},
        "values": {kind: root_mean_square(parts) for kind, parts in values.items()},
    }


def main():
    rows = [json.dumps(measure(case)) for case in CASES]
    (HERE / "pytorch_errors.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
