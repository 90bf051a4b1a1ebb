"""The two classification tasks of data/ in PyTorch, to compare with `gru train` at the same configuration.

    python benches/tasks.py vowels              # the speaker: one class per sequence
    python benches/tasks.py phonemes            # pronunciation: one class per letter
    python benches/tasks.py vowels --hidden 32 --layers 2 --epochs 20 --batch 8 --rate 0.01 --seeds 1 2 3 4 5

The model is torch.nn.GRU over packed sequences, then torch.nn.Linear over every step or over the last states (the last
layer's h_n, forward and reverse side by side). Numbers are standardised by the mean and the population standard
deviation of the training set's time steps; letters are one-hot. The loss is softmax cross-entropy, the mean over the
sequences or steps of a batch. The optimiser is AdamW with betas 0.9 and 0.999 and eps 1e-8. The norm of the whole
gradient is clipped. The learning rate rises linearly over the first --warm-up fraction of all updates and then falls to 0
along half a cosine:

    rate · (s + 1) / W                              for update s < W
    rate · (1 + cos(π · (s - W) / (S - W))) / 2     of S updates in total

Each epoch is one pass in a new order; its last batch may be smaller. Nothing is selected on the test set: the result is
the model after the last update. Needs torch and numpy. Written for torch 2.15.
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

DATA = pathlib.Path(__file__).parent.parent / "data"


@dataclasses.dataclass
class Task:
    """The columns of a task's CSV files and its default settings."""

    files: str
    sequence: str
    features: list
    label: str
    per_step: bool
    defaults: dict


TASKS = {
    "vowels": Task(
        "japanese_vowels", "sequence", [f"f{i}" for i in range(1, 13)], "label", False,
        {"batch": 16, "rate": 0.003, "epochs": 40},
    ),
    "phonemes": Task("phonemes", "word", ["letter"], "phoneme", True, {"batch": 64, "rate": 0.005, "epochs": 20}),
}


def read(task, part):
    """Reads each sequence: its rows of features and its labels, as text."""
    sequences = {}
    with open(DATA / f"{task.files}_{part}.csv", newline="") as file:
        for row in csv.DictReader(file):
            features, labels = sequences.setdefault(row[task.sequence], ([], []))
            features.append([row[name] for name in task.features])
            labels.append(row[task.label])
    return list(sequences.values())


def encoder(train):
    """Returns a function that encodes a sequence's text as [T, I]: standardised numbers, or one column for each text of the
    training set."""
    rows = [row for features, _ in train for row in features]
    try:
        numbers = np.array(rows, np.float64)
    except ValueError:
        known = {text: i for i, text in enumerate(sorted({row[0] for row in rows}))}
        eye = np.eye(len(known), dtype=np.float32)
        return lambda features: eye[[known[row[0]] for row in features]]
    mean, deviation = numbers.mean(0), numbers.std(0)
    return lambda features: ((np.array(features, np.float64) - mean) / deviation).astype(np.float32)


@dataclasses.dataclass
class Part:
    """The training or test set: x [N, T, I], lengths [N], and classes [N], or [N, T] with -100 at padding."""

    x: torch.Tensor
    lengths: torch.Tensor
    classes: torch.Tensor

    def rows(self, which):
        """Returns these sequences, cut to the longest of them."""
        longest = int(self.lengths[which].max())
        classes = self.classes[which] if self.classes.dim() == 1 else self.classes[which, :longest]
        return Part(self.x[which, :longest], self.lengths[which], classes)


def encode(task, sequences, encode_features, classes):
    pad = nn.utils.rnn.pad_sequence
    x = pad([torch.tensor(encode_features(features)) for features, _ in sequences], batch_first=True)
    lengths = torch.tensor([len(labels) for _, labels in sequences])
    if task.per_step:
        of_steps = [torch.tensor([classes[label] for label in labels]) for _, labels in sequences]
        return Part(x, lengths, pad(of_steps, batch_first=True, padding_value=-100))
    return Part(x, lengths, torch.tensor([classes[labels[0]] for _, labels in sequences]))


class Model(nn.Module):
    def __init__(self, task, inputs, outputs, options):
        super().__init__()
        both = not options.forward
        self.per_step = task.per_step
        self.gru = nn.GRU(inputs, options.hidden, options.layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(options.hidden * (1 + both), outputs)

    def forward(self, part):
        packed = nn.utils.rnn.pack_padded_sequence(part.x, part.lengths, batch_first=True, enforce_sorted=False)
        y, h_n = self.gru(packed)
        if self.per_step:
            return self.head(nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0])
        return self.head(torch.cat(list(h_n[-2:] if self.gru.bidirectional else h_n[-1:]), -1))


def rate_at(step, steps, options):
    warm_up = math.ceil(options.warm_up * steps)
    if step < warm_up:
        return options.rate * (step + 1) / warm_up
    return options.rate * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


def train(model, part, options):
    """Trains and returns the mean loss of the last epoch."""
    count = len(part.lengths)
    steps = options.epochs * math.ceil(count / options.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=options.weight_decay)
    step = 0
    for epoch in range(options.epochs):
        losses = []
        for which in torch.randperm(count).split(options.batch):
            batch = part.rows(which)
            loss = nn.functional.cross_entropy(model(batch).flatten(0, -2), batch.classes.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.param_groups[0]["lr"] = rate_at(step, steps, options)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        if options.verbose:
            print(f"  epoch {epoch + 1:3}: loss {statistics.mean(losses):.4f}")
    return statistics.mean(losses)


def right(model, part):
    """Returns for each sequence, or each step [N, T], whether its predicted class is correct."""
    with torch.inference_mode():
        found = [model(part.rows(which)).argmax(-1) for which in torch.arange(len(part.lengths)).split(256)]
    if part.classes.dim() == 1:
        return torch.cat(found) == part.classes
    width = part.classes.shape[1]
    found = torch.cat([nn.functional.pad(f, (0, width - f.shape[1])) for f in found])
    return found == part.classes


def accuracies(task, hits, part):
    """Returns named percentages. hits: the result of `right`."""
    percent = lambda a: 100 * float(a.float().mean())
    if not task.per_step:
        return {"sequences": percent(hits)}
    counted = part.classes >= 0
    return {"steps": percent(hits[counted]), "whole sequences": percent((hits | ~counted).all(1))}


def baselines(task, train, test):
    """Baselines without a model: the training set's most frequent class, and for texts the most frequent class of each text."""
    most = lambda classes: int(classes[classes >= 0].mode().values)
    found = {"the most frequent class": torch.full_like(test.classes, most(train.classes))}
    if task.per_step:
        table = torch.tensor([most(train.classes[train.x[..., i] > 0]) for i in range(train.x.shape[2])])
        found["the most frequent of each letter"] = table[test.x.argmax(-1)]
    return {name: accuracies(task, guess == test.classes, test) for name, guess in found.items()}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--forward", action="store_true", help="in one direction, not in both")
    parser.add_argument("--epochs", type=int, help="(vowels: 40, phonemes: 20)")
    parser.add_argument("--batch", type=int, help="sequences (vowels: 16, phonemes: 64)")
    parser.add_argument("--rate", type=float, help="the highest learning rate (vowels: 0.003, phonemes: 0.005)")
    parser.add_argument("--warm-up", type=float, default=0.1, help="of all steps (0.1)")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--clip", type=float, default=1.0, help="the largest norm of the gradient")
    start_help = "a safetensors file to start from, {seed} in its name for the seed (gru train's: same names)"
    parser.add_argument("--start", help=start_help)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    more_help = "(1: on a machine that others use too, threads that wait for each other are many times slower)"
    parser.add_argument("--threads", type=int, default=1, help=more_help)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    for name, value in TASKS[options.task].defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    task = TASKS[options.task]
    texts = {part: read(task, part) for part in ("train", "test")}
    classes = {c: i for i, c in enumerate(sorted({label for _, labels in texts["train"] for label in labels}))}
    encode_features = encoder(texts["train"])
    parts = {name: encode(task, sequences, encode_features, classes) for name, sequences in texts.items()}
    inputs = parts["train"].x.shape[2]
    print(f"{options.task}: {len(texts['train'])} sequences to learn from, {len(texts['test'])} to test,", end=" ")
    print(f"{inputs} inputs, {len(classes)} classes; torch {torch.__version__}, {options.threads} threads")
    print(", ".join(f"{name} {value}" for name, value in vars(options).items() if name not in ("task", "verbose")))

    rows = []
    for name, found in baselines(task, parts["train"], parts["test"]).items():
        rows.append((name, found, "", ""))
    of_seeds, seconds = [], []
    for seed in options.seeds:
        torch.manual_seed(seed)
        model = Model(task, inputs, len(classes), options)
        if options.start:
            from safetensors.torch import load_file

            model.load_state_dict(load_file(options.start.format(seed=seed)))
        start = time.perf_counter()
        loss = train(model, parts["train"], options)
        seconds.append(time.perf_counter() - start)
        of_seeds.append(accuracies(task, right(model, parts["test"]), parts["test"]))
        rows.append((f"seed {seed}", of_seeds[-1], f"{loss:.4f}", f"{seconds[-1]:.1f}"))
    medians = {name: statistics.median(found[name] for found in of_seeds) for name in of_seeds[0]}
    rows.append(("median", medians, "", f"{statistics.median(seconds):.1f}"))
    if len(of_seeds) > 1:
        for name, of in (("mean", statistics.mean), ("deviation", statistics.stdev)):
            rows.append((name, {n: of(found[n] for found in of_seeds) for n in of_seeds[0]}, "", ""))

    print(f"\n| | {' | '.join(f'{name}, %' for name in medians)} | last loss | training, s |")
    print(f"| --- |{' ---: |' * (len(medians) + 2)}")
    for name, found, loss, taken in rows:
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in found.values())} | {loss} | {taken} |")


if __name__ == "__main__":
    main()
