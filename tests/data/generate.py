"""Writes the expected numbers that tests/reference/expected.rs holds the reference, the CPU and the GPU against.

    pip install numpy torch && python tests/data/generate.py

pytorch.json    torch.nn.GRU in double precision, with and without bias, stacked and in both directions, over packed
                sequences, over documents one by one (resets), in detached chunks: outputs, and autograd's gradients.
equations.json  everything else: the equations of src/lib.rs stated once more in NumPy, in double precision, dropout's
                and zoneout's random numbers included. Gradients by complex steps, which are exact to rounding:
                f'(x) = Im f(x + 1e-30 i) / 1e-30.

The statement in NumPy is itself held against torch where torch has the variant. Inputs are rounded to float32, so
that a run in single precision starts from the very same numbers.
Made with numpy 2 and torch 2.15; other versions should give the same to the last few digits.
"""

import dataclasses
import json
import pathlib

import numpy as np
import torch

T, B, I, H = 4, 2, 3, 5
HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass
class Case:
    """A model and what is peculiar about a run of it."""

    reset: str
    update: str
    bias: str
    layers: int = 1
    direction: str = "forward"  # or reverse, or both
    gate: str = "sigmoid"
    candidate: str = "tanh"
    reverse: list = None  # gate and candidate of the reverse direction, if they differ
    clip: float = None  # of the pre-activations
    lengths: list = None  # of each row
    resets: list = dataclasses.field(default_factory=list)  # [step, row]: the row is cut before this step
    dropout: float = 0
    zoneout: float = 0
    training: bool = True
    seed: int = 0x123456789ABCDEF0
    chunk: int = 0  # steps after which gradients are cut; 0: never

    def __post_init__(self):
        self.lengths = self.lengths or [T] * B
        self.ways = {"forward": [False], "reverse": [True], "both": [False, True]}[self.direction]
        self.directions = len(self.ways)
        # The probabilities that single precision has.
        self.dropout, self.zoneout = (float(np.float32(p)) for p in (self.dropout, self.zoneout))

    def names(self):
        """The cells' names: layer-major, forward before reverse."""
        return [f"_l{l}{'_reverse' if reverse else ''}" for l in range(self.layers) for reverse in self.ways]

    def torch_has_it(self):
        plain = (self.reset, self.update, self.gate, self.candidate) == ("after", "keeps", "sigmoid", "tanh")
        plain = plain and not self.reverse and not self.clip
        return plain and self.direction != "reverse" and self.bias != "one" and not self.dropout and not self.zoneout


def clamp(a, least, most):
    return np.where(a.real < least, least, np.where(a.real > most, most, a))


ACTIVATIONS = {  # of real and of complex numbers
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "relu": lambda a: np.where(a.real > 0, a, 0),
    "identity": lambda a: a,
    "hard-sigmoid": lambda a, alpha, beta: clamp(alpha * a + beta, 0, 1),
    "affine": lambda a, alpha, beta: alpha * a + beta,
    "scaled-tanh": lambda a, alpha, beta: alpha * np.tanh(beta * a),
    "leaky-relu": lambda a, alpha: np.where(a.real < 0, alpha * a, a),
    "thresholded-relu": lambda a, alpha: np.where(a.real > alpha, a, 0),
    "elu": lambda a, alpha: np.where(a.real < 0, alpha * (np.exp(a) - 1), a),
    "softsign": lambda a: a / (1 + np.where(a.real < 0, -a, a)),
    "softplus": lambda a: np.log(1 + np.exp(a)),
}


def activation(text, clip):
    """The function of a name such as `elu(0.5)`, with numbers in single precision, of clipped pre-activations."""
    name, _, numbers = text.rstrip(")").partition("(")
    numbers = [float(np.float32(number)) for number in numbers.split(",") if number]
    bound = float(np.float32(clip)) if clip else np.inf
    return lambda a: ACTIVATIONS[name](clamp(a, -bound, bound), *numbers)


def philox(c, key):
    """Philox4x32-10: the first of the four words."""
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & 0xFFFFFFFF, (p >> 32) ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0]


def hits(case, probability, purpose, layer, t, first_unit):
    """[B, H]: where an event of this probability happens. purpose: 0 dropout, 1 zoneout."""
    draws = [[philox([first_unit + j, b, t, 2 * layer + purpose], case.seed) for j in range(H)] for b in range(B)]
    return np.array(draws) < round(probability * 2**32)


def cell(case, p, name, x, h, restart):
    """The outputs [T, B, H] and the last state [B, H] of one direction of one layer; absent biases count as zeros."""
    w_ir, w_iz, w_in = np.split(p[f"weight_ih{name}"], 3)
    w_hr, w_hz, w_hn = np.split(p[f"weight_hh{name}"], 3)
    b_ir, b_iz, b_in = np.split(p.get(f"bias_ih{name}", np.zeros(3 * H)), 3)
    b_hr, b_hz, b_hn = np.split(p.get(f"bias_hh{name}", np.zeros(3 * H)), 3)
    reverse, layer = name.endswith("_reverse"), int(name[2])
    pair = case.reverse if reverse and case.reverse else (case.gate, case.candidate)
    f, g = (activation(text, case.clip) for text in pair)
    first_unit = H if reverse and case.direction == "both" else 0
    y = np.zeros((T, B, H), complex)
    for t in reversed(range(T)) if reverse else range(T):
        # Running in reverse, the cut between steps t and t + 1 comes before step t.
        cut = [[t + 1 if reverse else t, b] in case.resets and t + reverse < case.lengths[b] for b in range(B)]
        h = np.where(np.array(cut)[:, None], restart, h)
        r = f(x[t] @ w_ir.T + b_ir + h @ w_hr.T + b_hr)
        z = f(x[t] @ w_iz.T + b_iz + h @ w_hz.T + b_hz)
        if case.reset == "before":
            n = g(x[t] @ w_in.T + b_in + (r * h) @ w_hn.T + b_hn)
        else:
            n = g(x[t] @ w_in.T + b_in + r * (h @ w_hn.T + b_hn))
        new = (1 - z) * h + z * n if case.update == "overwrites" else z * h + (1 - z) * n
        zone = case.zoneout
        if zone and case.training:
            zone = hits(case, case.zoneout, 1, layer, t, first_unit)
        new = zone * h + (1 - zone) * new
        valid = np.array([t < length for length in case.lengths])[:, None]
        h = np.where(valid, new, h)
        y[t] = np.where(valid, h, 0)
        if case.dropout and case.training and layer + 1 < case.layers:
            dropped = hits(case, case.dropout, 0, layer, t, first_unit)
            y[t] *= np.where(dropped, 0, np.float32(1 / (1 - case.dropout)))
    return y, h


def gru(case, p, x, h0, restart):
    """y [T, B, D·H] and h_n [L·D, B, H] of a GRU with PyTorch-shaped parameters."""
    h_n = []
    for layer in range(case.layers):
        halves = []
        for name in case.names()[layer * case.directions :][: case.directions]:
            y, last = cell(case, p, name, x, h0[len(h_n)], restart[len(h_n)])
            h_n.append(last)
            halves.append(y)
        x = np.concatenate(halves, axis=-1)
    return x, np.stack(h_n)


def inputs(rng, case):
    f = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32).astype(np.float64)
    p = {}
    for i, name in enumerate(case.names()):
        p[f"weight_ih{name}"] = f(3 * H, I if i < case.directions else case.directions * H)
        p[f"weight_hh{name}"] = f(3 * H, H)
        if case.bias in ("one", "two"):
            p[f"bias_ih{name}"] = f(3 * H)
        if case.bias == "two":
            p[f"bias_hh{name}"] = f(3 * H)
    states = (case.layers * case.directions, B, H)
    a = {"x": f(T, B, I), "h0": f(*states), "dy": f(T, B, case.directions * H), "dh_n": f(*states)}
    return p, {**a, "reset_state": f(*states) if case.resets else np.zeros(states)}


def by_equations(case, p, a):
    """Outputs, and the gradient of Σ dy·y + Σ dh_n·h_n by complex steps."""
    leaves = {**p, "x": a["x"], "h0": a["h0"], "reset_state": a["reset_state"]}

    def run(leaves):
        return gru(case, leaves, leaves["x"], leaves["h0"], leaves["reset_state"])

    grads = {}
    for name, value in leaves.items():
        grad = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[index] += 1e-30j
            y, h_n = run({**leaves, name: moved})
            grad[index] = ((a["dy"] * y).sum() + (a["dh_n"] * h_n).sum()).imag / 1e-30
        grads[name] = grad
    y, h_n = run(leaves)
    return y.real, h_n.real, grads


def torch_documents(case, model, x, h0, restart):
    """Each row cut where it is reset, and each piece run alone."""
    rows, lasts = [], []
    for b in range(B):
        cuts = sorted({0, T} | {t for t, row in case.resets if row == b})
        pieces = list(zip(cuts, cuts[1:]))
        outputs, states = [], []
        for first, last in pieces:
            # The first piece continues from h0, forward; the last one, in reverse.
            own = [restart[i, b] for i in range(len(restart))]
            for i, name in enumerate(case.names()):
                start = last == T if name.endswith("_reverse") else first == 0 and [0, b] not in case.resets
                own[i] = h0[i, b] if start else own[i]
            y, h_n = model(x[first:last, b : b + 1], torch.stack(own)[:, None])
            outputs.append(y)
            states.append(h_n)
        rows.append(torch.cat(outputs))
        ends = [states[0 if name.endswith("_reverse") else -1][i] for i, name in enumerate(case.names())]
        lasts.append(torch.stack(ends))
    return torch.cat(rows, 1), torch.cat(lasts, 1)


def by_torch(case, p, a):
    model = torch.nn.GRU(
        I, H, case.layers, bias="bias_ih_l0" in p, bidirectional=case.directions == 2, dtype=torch.float64
    )
    model.load_state_dict({k: torch.tensor(v) for k, v in p.items()})
    x, h0, restart = (torch.tensor(a[k], requires_grad=True) for k in ("x", "h0", "reset_state"))
    if case.resets:
        y, h_n = torch_documents(case, model, x, h0, restart)
    elif case.chunk:
        outputs, h_n = [], h0
        for chunk in x.split(case.chunk):
            y, h_n = model(chunk, h_n if not outputs else h_n.detach())
            outputs.append(y)
        y = torch.cat(outputs)
    elif case.lengths == [T] * B:
        y, h_n = model(x, h0)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(case.lengths), enforce_sorted=False)
        y, h_n = model(packed, h0)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    ((torch.tensor(a["dy"]) * y).sum() + (torch.tensor(a["dh_n"]) * h_n).sum()).backward()
    grads = {k: v.grad.numpy() for k, v in model.named_parameters()}
    for name, leaf in (("x", x), ("h0", h0), ("reset_state", restart)):
        grads[name] = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
    return y.detach().numpy(), h_n.detach().numpy(), grads


def tensor(a):
    return {"shape": list(a.shape), "data": a.ravel().tolist()}


def write(name, cases):
    text = ",\n".join(json.dumps(case) for case in cases)
    (HERE / name).write_text("[\n" + text + "\n]\n")


def make(rng, *variant, **peculiar):
    """One case, and whether torch made it."""
    case = Case(*variant, **peculiar)
    p, a = inputs(rng, case)
    y, h_n, grads = by_equations(case, p, a)
    if case.torch_has_it():
        torch_y, torch_h_n, torch_grads = by_torch(case, p, a)
        np.testing.assert_allclose(y, torch_y, rtol=1e-12)
        np.testing.assert_allclose(h_n, torch_h_n, rtol=1e-12)
        for k in grads if not case.chunk else []:
            np.testing.assert_allclose(grads[k], torch_grads[k], rtol=1e-9, atol=1e-13)
        y, h_n, grads = torch_y, torch_h_n, torch_grads
    made = {
        **dataclasses.asdict(case),
        "params": {k: tensor(v) for k, v in p.items()},
        "inputs": {k: tensor(v) for k, v in a.items()},
        "y": tensor(y),
        "h_n": tensor(h_n),
        "grads": {k: tensor(v) for k, v in grads.items()},
    }
    return made, case.torch_has_it()


rng = np.random.default_rng(20240229)
variants = [(r, u, b) for r in ("before", "after") for u in ("overwrites", "keeps") for b in ("none", "one", "two")]
made = [make(rng, *variant) for variant in variants]
H, I = 3, 2  # several cells have many numbers
made += [make(rng, reset, update, "two", 2, "both") for reset, update, bias in variants if bias == "two"]
made += [make(rng, "after", "keeps", "two", 3, "forward"), make(rng, "after", "keeps", "none", 1, "both")]
made += [
    make(rng, "before", "keeps", "two", 2, "forward", "sigmoid", "relu"),
    make(rng, "after", "overwrites", "two", 1, "both", "hard-sigmoid(0.2,0.5)", "tanh"),
    make(rng, "before", "overwrites", "one", 1, "forward", "tanh", "identity"),
]
made += [
    make(rng, "after", "keeps", "two", 2, "both", lengths=[2, T]),  # torch wants at least 1
    make(rng, "before", "overwrites", "one", 2, "both", lengths=[T - 1, 0]),
    make(rng, "after", "overwrites", "two", 1, "both", lengths=[1, 3]),
    make(rng, "before", "keeps", "two", 1, "both", lengths=[0, 2]),
]
made += [
    make(rng, "after", "keeps", "two", 2, "both", resets=[[1, 0], [3, 0], [2, 1]]),
    make(rng, "after", "keeps", "two", 2, "forward", resets=[[0, 0], [2, 0], [3, 1]]),
    make(rng, "before", "overwrites", "one", 2, "both", resets=[[2, 0], [1, 1], [2, 1]]),
    make(rng, "after", "overwrites", "two", 1, "both", resets=[[0, 0], [1, 0], [2, 1]], lengths=[3, 2]),
    make(rng, "before", "keeps", "two", 1, "both", resets=[[3, 0], [0, 1], [1, 1]]),
]
made += [
    make(rng, "after", "keeps", "two", 3, "both", dropout=0.5),
    make(rng, "before", "overwrites", "one", 2, "both", dropout=0.3, zoneout=0.4, lengths=[3, 4]),
    make(rng, "after", "overwrites", "two", 1, "both", zoneout=0.5, resets=[[2, 1]]),
    make(rng, "before", "keeps", "two", 2, "forward", dropout=0.25, zoneout=0.125, seed=7),
    make(rng, "after", "keeps", "two", 2, "both", dropout=0.5, zoneout=0.3, training=False),
    make(rng, "before", "overwrites", "one", 1, "forward", zoneout=0.6, training=False),
]
made += [make(rng, "after", "keeps", "two", 2, "forward", chunk=2), make(rng, "after", "keeps", "none", 1, "forward", chunk=3)]
made += [
    make(rng, "before", "keeps", "two", 2, "reverse", lengths=[2, T]),
    make(rng, "after", "keeps", "none", 1, "reverse", resets=[[2, 0], [1, 1]]),
    make(rng, "before", "overwrites", "one", 2, "reverse", dropout=0.5, zoneout=0.25),
]
made += [
    make(rng, "before", "keeps", "two", 1, "both", "sigmoid", "tanh", clip=0.6),
    make(rng, "after", "overwrites", "one", 2, "forward", "hard-sigmoid(0.3,0.4)", "elu(0.7)", clip=1.1),
    make(rng, "after", "keeps", "two", 1, "both", "softsign", "scaled-tanh(1.7,0.6)", ["sigmoid", "leaky-relu(0.1)"]),
    make(rng, "before", "overwrites", "two", 2, "both", "sigmoid", "softplus", ["affine(0.2,0.5)", "tanh"], lengths=[3, 2]),
    make(rng, "before", "keeps", "two", 1, "reverse", "sigmoid", "thresholded-relu(0.2)", clip=0.9),
]
torch_cases = [case for case, by_torch in made if by_torch]
equation_cases = [case for case, by_torch in made if not by_torch]
write("pytorch.json", torch_cases)
write("equations.json", equation_cases)
print(len(torch_cases), "cases by torch,", len(equation_cases), "by the equations")
