"""The forecasts of `gru forecast` in PyTorch, with the same windows, scaling, schedule and sizes.

    python benches/forecast.py [--seeds 1 2 3]
    gru forecast data/mauna_loa_co2_weekly.csv --reset after --device cpu --seed N       # the same here, for each seed

    python benches/forecast.py --series [--seeds 1 2 3]
    gru forecast data/us_employment.csv --series sector --input 24 --horizon 12 --season 12 --reset after --device cpu --seed N

Weekly CO2 at Mauna Loa: windows of 104 weeks of input and 52 of output. With --series jobs in 20 sectors by month, one model
for all: windows of 24 and 12 months. Values are relative to each window's last value and scaled, each series by itself, by
the root mean square of the targets in its training set (the first 80 %). torch.nn.GRU with 32 units, torch.nn.Linear on
its last state. Adam at 0.01 with a half-cosine schedule to 0, 30 epochs, batches of 64, gradient norm clipped to 1.
Needs torch and numpy. Written for torch 2.15.
"""

import argparse
import csv
import dataclasses
import math
import pathlib
import statistics
import time

import numpy as np
import torch
from torch import nn

HIDDEN, EPOCHS, BATCH, RATE = 32, 30, 64, 0.01
DATA = pathlib.Path(__file__).parent.parent / "data"


@dataclasses.dataclass
class Task:
    file: str
    column: str
    series: str | None
    input: int
    horizon: int
    season: int
    unit: str


CO2 = Task("mauna_loa_co2_weekly.csv", "co2", None, 104, 52, 52, "ppm")
JOBS = Task("us_employment.csv", "jobs", "sector", 24, 12, 12, "thousand jobs")


def read(task):
    """Reads each series and fills missing values by linear interpolation."""
    series = {}
    with open(DATA / task.file, newline="") as file:
        for row in csv.DictReader(file):
            series.setdefault(row[task.series] if task.series else "", []).append(float(row[task.column] or "nan"))
    return [fill(np.array(values)) for values in series.values()]


def fill(values):
    known = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), known, values[known])


class Windows:
    """The windows of a series: those to train on, and those that are held out."""

    def __init__(self, task, values):
        self.task, self.values = task, values
        split = round(0.8 * len(values))
        self.train = self.of(np.arange(task.input, split - task.horizon + 1))
        self.origins = np.arange(split, len(values) - task.horizon + 1)
        self.held_out = self.of(self.origins)
        self.scale = math.sqrt((self.train[1] ** 2).mean())

    def of(self, origins):
        """Returns inputs [N, T] and targets [N, K], relative to each window's last value."""
        last = self.values[origins - 1][:, None]
        inputs = self.values[origins[:, None] + np.arange(-self.task.input, 0)] - last
        return inputs, self.values[origins[:, None] + np.arange(self.task.horizon)] - last

    def scaled(self, which):
        return torch.tensor(which / self.scale, dtype=torch.float32)

    def error(self, model):
        """Returns the held-out RMSE."""
        inputs, targets = self.held_out
        forecasts = model(self.scaled(inputs)).numpy() * self.scale
        return math.sqrt(((forecasts - targets) ** 2).mean())

    def baseline(self):
        """Returns the lowest RMSE of the last value, of the season before, and of that plus its drift."""
        season, ahead = self.task.season, np.arange(self.task.horizon)
        before = self.values[self.origins[:, None] + ahead % season - season]
        last = self.values[self.origins - 1][:, None]
        drift = (last - self.values[self.origins - 1 - season][:, None]) * (ahead // season + 1)
        forecasts = (0 * before, before - last, before + drift - last)
        return min(math.sqrt(((forecast - self.held_out[1]) ** 2).mean()) for forecast in forecasts)


class Forecaster(nn.Module):
    def __init__(self, horizon):
        super().__init__()
        self.gru = nn.GRU(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, horizon)

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
    parser.add_argument("--series", action="store_true", help="jobs in 20 sectors instead of CO2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = JOBS if options.series else CO2
    series = [Windows(task, values) for values in read(task)]
    x, y = (torch.cat([one.scaled(one.train[part]) for one in series]) for part in (0, 1))
    print(f"{len(series)} series, {len(x)} windows to train on, {sum(len(one.origins) for one in series)} held out")
    for seed in options.seeds:
        torch.manual_seed(seed)
        model, start = Forecaster(task.horizon), time.perf_counter()
        train(model, x, y)
        seconds = time.perf_counter() - start
        with torch.inference_mode():
            errors = [one.error(model) for one in series]
        if len(series) == 1:
            print(f"seed {seed}: held-out RMSE {errors[0]:.3f} {task.unit}, {seconds:.1f} s")
            continue
        ratios = [error / one.baseline() for error, one in zip(errors, series)]
        better = sum(ratio < 1 for ratio in ratios)
        print(
            f"seed {seed}: RMSE over that of the best baseline, median over series {statistics.median(ratios):.2f}; "
            f"below it in {better} of {len(series)}; {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
