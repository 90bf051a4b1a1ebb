"""The CO2 forecast of `gru forecast` in PyTorch, with the same windows, scaling, schedule and sizes.

    python benches/forecast.py [--seeds 1 2 3]
    gru forecast data/mauna_loa_co2_weekly.csv --device cpu --seed N       # the same here, for each seed

Windows of 104 weeks of input and 52 of output, relative to each window's last value and scaled by the root mean square
of the targets in the training set (the first 80 %). torch.nn.GRU with 32 units, torch.nn.Linear on its last state. Adam at
0.01 with a half-cosine schedule to 0, 30 epochs, batches of 64, gradient norm clipped to 1. PyTorch applies the reset
gate after the product; `gru forecast` applies it before. Needs torch and numpy. Written for torch 2.15.
"""

import argparse
import csv
import math
import pathlib
import time

import numpy as np
import torch
from torch import nn

INPUT, HORIZON, HIDDEN, EPOCHS, BATCH, RATE = 104, 52, 32, 30, 64, 0.01
DATA = pathlib.Path(__file__).parent.parent / "data" / "mauna_loa_co2_weekly.csv"


def read():
    """Reads the series and fills missing values by linear interpolation."""
    with open(DATA, newline="") as file:
        values = np.array([float(row["co2"] or "nan") for row in csv.DictReader(file)])
    known = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), known, values[known])


def windows(series, origins):
    """Returns inputs [N, T] and targets [N, K], relative to each window's last value."""
    last = series[origins - 1][:, None]
    inputs = series[origins[:, None] + np.arange(-INPUT, 0)] - last
    return inputs, series[origins[:, None] + np.arange(HORIZON)] - last


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, HORIZON)

    def forward(self, x):
        return self.head(self.gru(x[..., None])[1][0])


def train(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    steps, step = EPOCHS * math.ceil(len(x) / BATCH), 0
    for _ in range(EPOCHS):
        for which in torch.randperm(len(x)).split(BATCH):
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[which]), y[which]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    series = read()
    split = round(0.8 * len(series))
    inputs, targets = windows(series, np.arange(INPUT, split - HORIZON + 1))
    scale = math.sqrt((targets**2).mean())
    x, y = (torch.tensor(a / scale, dtype=torch.float32) for a in (inputs, targets))
    held_inputs, held_targets = windows(series, np.arange(split, len(series) - HORIZON + 1))
    print(f"{len(x)} windows to train on, {len(held_inputs)} held out")
    for seed in options.seeds:
        torch.manual_seed(seed)
        model, start = Forecaster(), time.perf_counter()
        train(model, x, y)
        seconds = time.perf_counter() - start
        with torch.inference_mode():
            forecasts = model(torch.tensor(held_inputs / scale, dtype=torch.float32)).numpy() * scale
        error = math.sqrt(((forecasts - held_targets) ** 2).mean())
        print(f"seed {seed}: held-out RMSE {error:.3f} ppm, {seconds:.1f} s")


if __name__ == "__main__":
    main()
