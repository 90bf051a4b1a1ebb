"""Writes training.json: what ten training steps of PyTorch make of small models, for every loss, optimizer, way of
clipping and schedule of this library.

    pip install numpy torch && python tests/data/generate_training.py

A model is torch.nn.GRU over packed sequences, then torch.nn.Linear (`head`) over every step or over the last states:
the last layer's h_n, forward and reverse side by side. Everything is single precision on the CPU. The same run in
double precision is what says how much of a number is rounding: `rounding` is the largest difference, and the program
stops where it is more than rounding should be.

A case:
    name, input, hidden, output, layers, bidirectional
    head          "steps" or "last"
    loss          {"kind": "mse" | "huber", "delta" | "cross_entropy", "ignore_index"}: the mean over what counts. A step
                  past its row's length never counts (its target is junk), nor does a class of ignore_index.
    optimizer     {"kind": "sgd", "momentum", "weight_decay" | "adam" or "adamw", "beta1", "beta2", "eps", "weight_decay"}
    clip          {"kind": "none" | "norm", "max_norm" | "value", "max"}: as torch.nn.utils.clip_grad_norm_, clip_grad_value_
    schedule      {"kind": "constant" | "cosine", "warm_up", "steps", "floor" | "step", "every", "factor"}, see `rate`
    rate          the schedule's base
    accumulate    k: step s takes batches k·s, k·s + 1, … (k·s + k - 1), modulo their number; its loss is the mean of
                  the k batches' losses, each of them a mean of its own, and its gradient is that loss's
    batches       x [T, B, input], lengths [B], targets: [T, B, output] or [B, output], of classes [T, B] or [B]
    before, after the parameters under PyTorch's names
    rates, losses, norms   of each step: the learning rate, the loss before the step, the norm of the gradient of all
                  parameters before clipping
    rounding      {"losses", "norms", "after"}: the largest |single - double|

Made with numpy 2 and torch 2.15.
"""

import collections
import copy
import dataclasses
import json
import math
import pathlib

import numpy as np
import torch
from torch import nn

STEPS = 10
IGNORE = -100
T, B = 7, 5
INPUT = 3
HERE = pathlib.Path(__file__).parent

SGD = {"kind": "sgd", "momentum": 0.0, "weight_decay": 0.0}
MOMENTUM = {"kind": "sgd", "momentum": 0.9, "weight_decay": 0.02}
ADAM = {"kind": "adam", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
ADAM_L2 = {**ADAM, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}
ADAMW = {**ADAM, "kind": "adamw", "weight_decay": 0.05}

MSE = {"kind": "mse"}
HUBER = {"kind": "huber", "delta": 0.3}
CLASSES = {"kind": "cross_entropy", "ignore_index": IGNORE}

UNCLIPPED = {"kind": "none"}
NORM = {"kind": "norm", "max_norm": 0.25}
TIGHT = {"kind": "norm", "max_norm": 0.04}  # Huber has small gradients
VALUE = {"kind": "value", "max": 0.03}

CONSTANT = {"kind": "constant"}
COSINE = {"kind": "cosine", "warm_up": 3, "steps": STEPS, "floor": 0.1}
DECAY = {"kind": "step", "every": 4, "factor": 0.3}


class Unsuitable(Exception):
    """A seed whose numbers test less than they should."""


def require(condition, why):
    if not condition:
        raise Unsuitable(why)


@dataclasses.dataclass
class Case:
    name: str
    bidirectional: bool
    head: str
    loss: dict
    optimizer: dict
    rate: float
    clip: dict
    schedule: dict
    accumulate: int = 1

    def sizes(self):
        """Hidden units, outputs and layers: more layers have fewer units."""
        hidden, layers = (3, 2) if self.bidirectional else (5, 1)
        return hidden, 4 if self.of_classes() else 2, layers

    def of_classes(self):
        return self.loss["kind"] == "cross_entropy"


def rate(case, step):
    """The learning rate of a step, counted from 0."""
    schedule = case.schedule
    if schedule["kind"] == "constant":
        return case.rate
    if schedule["kind"] == "step":
        return case.rate * schedule["factor"] ** (step // schedule["every"])
    warm_up, steps, floor = schedule["warm_up"], schedule["steps"], schedule["floor"]
    if step < warm_up:
        return case.rate * (step + 1) / warm_up
    wave = (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2
    return case.rate * (floor + (1 - floor) * wave)


class Model(nn.Module):
    def __init__(self, case):
        super().__init__()
        hidden, output, layers = case.sizes()
        self.over_steps = case.head == "steps"
        self.gru = nn.GRU(INPUT, hidden, layers, bidirectional=case.bidirectional)
        self.head = nn.Linear(hidden * (1 + case.bidirectional), output)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, h_n = self.gru(packed)
        if self.over_steps:
            return self.head(nn.utils.rnn.pad_packed_sequence(y, total_length=T)[0])
        last_layer = h_n[-2:] if self.gru.bidirectional else h_n[-1:]
        return self.head(torch.cat(list(last_layer), dim=-1))

    def named(self):
        """The parameters under the names that nn.GRU itself has for them."""
        return {name.removeprefix("gru."): p for name, p in self.named_parameters()}


def make_batch(case):
    """x uniform in ±1, and targets that hang together with it, so that there is something to learn."""
    _, output, _ = case.sizes()
    x = torch.rand(T, B, INPUT) * 2 - 1
    lengths = torch.randint(1, T + 1, (B,))
    lengths[int(torch.randint(B, ()))] = 1
    past = torch.arange(T)[:, None] >= lengths
    sums = torch.cumsum(x.masked_fill(past[..., None], 0), 0)
    wanted = torch.cat([sums, sums[..., :1] - sums[..., 1:2]], -1)[..., :output]
    junk, ignored = 100.0, torch.rand(T, B) < 0.2
    if case.of_classes():
        # A past step's class is one that a loss which forgot the lengths would count.
        wanted, junk = wanted.argmax(-1).masked_fill(ignored, IGNORE), 1
        if case.head == "last":
            wanted[-1, :2] = torch.tensor([IGNORE, 2])
    if case.head == "last":
        return x, lengths, wanted[-1]
    return x, lengths, wanted.masked_fill(past if case.of_classes() else past[..., None], junk)


def loss_of(case, model, batch):
    x, lengths, targets = batch
    outputs = model(x, lengths)
    if case.head == "steps":
        counted = torch.arange(T)[:, None] < lengths
        outputs, targets = outputs[counted], targets[counted]
    if case.loss["kind"] == "mse":
        return nn.functional.mse_loss(outputs, targets)
    if case.loss["kind"] == "huber":
        within = (outputs - targets).abs() < case.loss["delta"]
        require(within.any() and not within.all(), "one branch of Huber's loss alone")
        return nn.functional.huber_loss(outputs, targets, delta=case.loss["delta"])
    return nn.functional.cross_entropy(outputs, targets, ignore_index=IGNORE)


def optimizer_of(case, parameters):
    o = case.optimizer
    if o["kind"] == "sgd":
        return torch.optim.SGD(parameters, lr=case.rate, momentum=o["momentum"], weight_decay=o["weight_decay"])
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[o["kind"]]
    betas = (o["beta1"], o["beta2"])
    return make(parameters, lr=case.rate, betas=betas, eps=o["eps"], weight_decay=o["weight_decay"])


def clip(case, parameters):
    """Whether anything was clipped."""
    if case.clip["kind"] == "norm":
        return nn.utils.clip_grad_norm_(parameters, case.clip["max_norm"]) > case.clip["max_norm"]
    if case.clip["kind"] == "value":
        largest = max(p.grad.abs().max() for p in parameters)
        nn.utils.clip_grad_value_(parameters, case.clip["max"])
        return largest > case.clip["max"]
    return False


def train(case, model, batches):
    """The ten steps: the losses and norms of each, and how many were clipped."""
    parameters = list(model.parameters())
    optimizer = optimizer_of(case, parameters)
    losses, norms, clipped = [], [], 0
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(case, step)
        optimizer.zero_grad()
        loss = 0
        for i in range(case.accumulate):
            part = loss_of(case, model, batches[(case.accumulate * step + i) % len(batches)]) / case.accumulate
            part.backward()
            loss += part.detach()
        losses.append(loss)
        norms.append(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in parameters])))
        clipped += bool(clip(case, parameters))
        optimizer.step()
    return torch.stack(losses), torch.stack(norms), clipped


def as_double(batch):
    return [a.double() if a.is_floating_point() else a for a in batch]


def numbers(tensor):
    """The shortest decimals that single precision reads back as the very same numbers."""
    a = tensor.detach().numpy().ravel()
    if a.dtype != np.float32:
        return a.tolist()
    short = [float(str(v)) for v in a]
    assert (np.array(short).astype(np.float32) == a).all()
    return short


def array(tensor):
    return {"shape": list(tensor.shape), "data": numbers(tensor)}


def arrays(named):
    return {name: array(p) for name, p in named.items()}


def furthest(single, double):
    return float((single.double() - double).detach().abs().max())


def attempt(case, seed):
    torch.manual_seed(seed)
    model = Model(case)
    batches = [make_batch(case) for _ in range(2 * case.accumulate)]
    before, exact = arrays(model.named()), copy.deepcopy(model).double()
    losses, norms, clipped = train(case, model, batches)
    exact_losses, exact_norms, _ = train(case, exact, [as_double(batch) for batch in batches])
    rounding = {
        "losses": furthest(losses, exact_losses),
        "norms": furthest(norms, exact_norms),
        "after": max(furthest(p, exact.named()[name]) for name, p in model.named().items()),
    }
    require(losses[-2:].sum() < losses[:2].sum(), f"nothing learnt: {losses.tolist()}")
    require(case.clip["kind"] == "none" or clipped >= STEPS // 2, f"clipped {clipped} times: {norms.tolist()}")
    # Adam divides a gradient by its own size: where a gradient is next to nothing, the step is made of rounding.
    require(max(rounding.values()) < 1e-6, f"rounding moves it: {rounding}")
    hidden, output, layers = case.sizes()
    made = {
        **dataclasses.asdict(case),
        "input": INPUT,
        "hidden": hidden,
        "output": output,
        "layers": layers,
        "batches": [{"x": array(x), "lengths": n.tolist(), "targets": array(t)} for x, n, t in batches],
        "before": before,
        "rates": [rate(case, step) for step in range(STEPS)],
        "losses": numbers(losses),
        "norms": numbers(norms),
        "after": arrays(model.named()),
        "rounding": {key: float(f"{value:.1e}") for key, value in rounding.items()},
    }
    print(f"{case.name:58} seed {seed:3}, loss {losses[0]:.4f} to {losses[-1]:.4f}, clipped {clipped:2}, {made['rounding']}")
    return made


def make(index, case):
    """With the first seed of its ten that suits."""
    for seed in range(10 * index, 10 * index + 10):
        try:
            return attempt(case, seed)
        except Unsuitable as why:
            print(f"{case.name}: seed {seed}: {why}")
    raise SystemExit(f"{case.name}: no seed suits")


def table():
    uni, both = False, True
    rows = [
        (uni, "steps", MSE, SGD, 0.1, UNCLIPPED, CONSTANT),
        (both, "last", MSE, MOMENTUM, 0.05, NORM, CONSTANT),
        (uni, "last", CLASSES, ADAM, 0.03, UNCLIPPED, CONSTANT),
        (both, "steps", CLASSES, ADAMW, 0.02, NORM, COSINE),
        (both, "steps", HUBER, ADAM, 0.02, VALUE, DECAY),
        (uni, "last", HUBER, ADAMW, 0.02, UNCLIPPED, COSINE),
        (uni, "steps", CLASSES, MOMENTUM, 0.1, NORM, DECAY),
        (both, "last", CLASSES, ADAM_L2, 0.02, VALUE, COSINE),
        (both, "steps", MSE, ADAM, 0.02, UNCLIPPED, COSINE),
        (uni, "last", MSE, ADAMW, 0.03, VALUE, DECAY),
        (both, "last", HUBER, SGD, 1.0, TIGHT, DECAY),
        (uni, "steps", HUBER, ADAM_L2, 0.02, TIGHT, CONSTANT),
        (both, "steps", CLASSES, SGD, 0.3, VALUE, CONSTANT),
        (both, "last", MSE, ADAM, 0.02, UNCLIPPED, CONSTANT, 2),
        (uni, "steps", CLASSES, ADAMW, 0.02, NORM, COSINE, 2),
    ]
    for bidirectional, head, loss, optimizer, rate, clip, schedule, *accumulate in rows:
        kinds = [loss["kind"], optimizer["kind"], clip["kind"], schedule["kind"]]
        name = " ".join(["both" if bidirectional else "forward", head, *kinds, *(f"x{n}" for n in accumulate)])
        yield Case(name, bidirectional, head, loss, optimizer, rate, clip, schedule, *accumulate)


cases = list(table())
for field in ("bidirectional", "head", "loss", "optimizer", "clip", "schedule", "accumulate"):
    counts = collections.Counter(json.dumps(getattr(case, field)) for case in cases)
    assert min(counts.values()) >= 2, f"{field}: {counts}"
text = ",\n".join(json.dumps(make(index, case)) for index, case in enumerate(cases))
(HERE / "training.json").write_text("[\n" + text + "\n]\n")
