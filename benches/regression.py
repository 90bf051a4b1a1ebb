"""The remaining life of aircraft engines in PyTorch, to compare with `gru train --task regress` at the same settings.

    python data/make_turbofan.py FOLDER                     # NASA's files, see there
    python benches/regression.py rows [--seeds 1 2 3]       # a number a row; the state is carried from window to window
    python benches/regression.py windows [--seeds 1 2 3]    # a number a window, that of its last row

    gru train data/turbofan_train.csv --valid data/turbofan_test.csv --task regress --window 50 --batch 16 \\
        --epochs 20 --device cpu --seed 1 --run rows-1
    gru train data/turbofan_train.csv --valid data/turbofan_test.csv --task regress --per sequence --window 30 --stride 1 \\
        --batch 256 --epochs 8 --device cpu --seed 1 --run windows-1

torch.nn.GRU with 64 units, torch.nn.Linear on every state or on the last one. Inputs and labels are standardised by the
training set. AdamW at 0.003 with weight decay 0.01; the rate rises over the first 5 % of the updates and then falls to 0
along half a cosine; gradient norm clipped to 1. The result is that of the best epoch on the test set, as `gru train`
chooses it. Rows: the windows of all engines, in a random order of engines, are cut into as many equal parts as a batch has
rows, and row b of the batches reads part b; an engine starts from zeros. Needs torch and numpy. Written for torch 2.15.
"""

import argparse
import csv
import math
import pathlib
import time

import numpy as np
import torch
from torch import nn

DATA = pathlib.Path(__file__).parent.parent / "data"
HIDDEN, RATE, WARM_UP, WEIGHT_DECAY, CLIP = 64, 0.003, 0.05, 0.01, 1.0


def read(part):
    """Returns the rows of each engine: 25 inputs, then the label."""
    engines = {}
    with open(DATA / f"turbofan_{part}.csv", newline="") as file:
        for unit, *numbers in list(csv.reader(file))[1:]:
            engines.setdefault(unit, []).append([float(number) for number in numbers])
    return [np.array(rows) for rows in engines.values()]


class Model(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.gru = nn.GRU(inputs, HIDDEN)
        self.head = nn.Linear(HIDDEN, 1)


def rate_at(step, steps):
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return RATE * (step + 1) / warm_up
    return RATE * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


class Updates:
    """Makes updates with the schedule of a run."""

    def __init__(self, model, steps):
        self.model, self.steps, self.step = model, steps, 0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)

    def make(self, loss):
        self.optimizer.param_groups[0]["lr"] = rate_at(self.step, self.steps)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.step += 1


class Rows:
    """A number a row: truncated backpropagation through windows, states carried."""

    def __init__(self, engines, options):
        self.engines, self.window, self.batch = engines, options.window, options.batch
        count = sum(math.ceil(len(engine) / self.window) for engine in engines)
        self.updates = math.ceil(count / self.batch)

    def epoch(self, model, updates, random):
        order = [
            (engine, at)
            for engine in random.permutation(len(self.engines))
            for at in range(math.ceil(len(self.engines[engine]) / self.window))
        ]
        rows = min(self.batch, len(order))
        short, longer = divmod(len(order), rows)
        turn = random.integers(max(1, short))
        order = order[turn:] + order[:turn]
        start = [row * short + min(row, longer) for row in range(rows)]
        state, before = None, None
        for at in range(short + (longer > 0)):
            windows = [order[start[row] + at] for row in range(rows if at < short else longer)]
            x, y, mask = self.stack(windows)
            if state is not None:
                continues = [a == b and i + 1 == j for (a, i), (b, j) in zip(before, windows)]
                state = state[:, : len(windows)].detach() * torch.tensor(continues)[None, :, None]
            h, state = model.gru(x, state)
            updates.make((((model.head(h)[..., 0] - y) ** 2) * mask).sum() / mask.sum())
            before = windows

    def stack(self, windows):
        x = torch.zeros(self.window, len(windows), self.engines[0].shape[1] - 1)
        y, mask = torch.zeros(x.shape[:2]), torch.zeros(x.shape[:2])
        for row, (engine, at) in enumerate(windows):
            of_window = torch.tensor(self.engines[engine][at * self.window : (at + 1) * self.window], dtype=torch.float32)
            x[: len(of_window), row], y[: len(of_window), row] = of_window[:, :-1], of_window[:, -1]
            mask[: len(of_window), row] = 1
        return x, y, mask

    @staticmethod
    def errors(model, engine, _):
        x = torch.tensor(engine[:, None, :-1], dtype=torch.float32)
        return model.head(model.gru(x)[0])[:, 0, 0].numpy() - engine[:, -1]


class Windows:
    """A number a window: each is an example of its own."""

    def __init__(self, engines, options):
        self.batch = options.batch
        pieces = [piece for engine in engines for piece in self.cut(engine, options)]
        self.longest = max(len(piece) for piece in pieces)
        assert all(len(piece) == self.longest for piece in pieces), "an engine has fewer rows than a window"
        self.windows = torch.tensor(np.array(pieces), dtype=torch.float32)
        self.updates = math.ceil(len(pieces) / self.batch)

    @staticmethod
    def cut(engine, options):
        starts = range(0, max(0, len(engine) - options.window) + 1, options.stride)
        return [engine[start : start + options.window] for start in starts]

    def epoch(self, model, updates, random):
        for which in torch.tensor(random.permutation(len(self.windows))).split(self.batch):
            windows = self.windows[which].transpose(0, 1)
            h_n = model.gru(windows[..., :-1].contiguous())[1][0]
            updates.make(nn.functional.mse_loss(model.head(h_n)[:, 0], windows[-1, :, -1]))

    @classmethod
    def errors(cls, model, engine, options):
        windows = np.array(cls.cut(engine, options))
        x = torch.tensor(windows[..., :-1], dtype=torch.float32).transpose(0, 1)
        return model.head(model.gru(x)[1][0])[:, 0].numpy() - windows[:, -1, -1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["rows", "windows"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = options.task == "rows"
    options.window, options.stride = (50, 50) if rows else (30, 1)
    options.batch, options.epochs = (16, 20) if rows else (256, 8)
    torch.set_num_threads(options.threads)
    train, test = read("train"), read("test")
    together = np.concatenate(train)
    mean, deviation = together.mean(0), together.std(0)
    # Columns that are constant, up to rounding, are not scaled.
    deviation[deviation <= 1e-12 * np.abs(together).max(0)] = 1
    train, test = ([(engine - mean) / deviation for engine in part] for part in (train, test))
    task = (Rows if rows else Windows)(train, options)
    for seed in options.seeds:
        torch.manual_seed(seed)
        random, model = np.random.default_rng(seed), Model(train[0].shape[1] - 1)
        updates, seconds, best = Updates(model, options.epochs * task.updates), 0.0, (math.inf,)
        for epoch in range(options.epochs):
            start = time.perf_counter()
            task.epoch(model, updates, random)
            seconds += time.perf_counter() - start
            with torch.inference_mode():
                errors = np.concatenate([task.errors(model, engine, options) for engine in test]) * deviation[-1]
            best = min(best, (math.sqrt((errors**2).mean()), np.abs(errors).mean(), epoch + 1))
        print(f"seed {seed}: RMSE {best[0]:.2f}, MAE {best[1]:.2f} flights after epoch {best[2]}; training {seconds:.1f} s")


if __name__ == "__main__":
    main()
