"""Writes the files of tests/data/pytorch that tests/formats/pytorch.rs reads, as torch.save writes them.

    pip install numpy torch && python tests/data/pytorch.py

    NAME.pt           a file of torch.save, in the zip form or the old form
    NAME.PREFIX.npy   y of the GRU under PREFIX for x.npy, [T, B, D·H], as torch computes it
    x.npy             the input, [T, B, I]
    NAME.every.npy    the head's outputs at every step, [T, B, C], and NAME.last.npy those of h_n, [1, B, C]

Made with torch 2.15 on a CPU, in single precision.
"""

import argparse
import pathlib
import warnings

import numpy as np
import torch
from torch.nn.utils import parametrizations, weight_norm

warnings.filterwarnings("ignore")
HERE = pathlib.Path(__file__).parent / "pytorch"
T, B, I, H = 6, 3, 3, 5
torch.manual_seed(5)
x = torch.rand(T, B, I) * 2 - 1


def save(name, content, old=False, **options):
    torch.save(content, HERE / f"{name}.pt", _use_new_zipfile_serialization=not old, **options)


def expect(name, prefix, y):
    np.save(HERE / f"{name}.{prefix}.npy", y.detach().float().numpy())


class Speech(torch.nn.Module):
    """A GRU of two layers and directions, beside other modules."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.ModuleDict({"gru": torch.nn.GRU(I, H, 2, bidirectional=True), "norm": torch.nn.LayerNorm(H)})
        self.lstm = torch.nn.LSTM(I, H)
        self.register_buffer("steps", torch.arange(3))

    @property
    def gru(self):
        return self.encoder["gru"]


class Callback:
    """Stands for what a trainer stores: the reader does not know its class."""

    def __init__(self):
        self.best, self.path, self.history = torch.zeros(2), pathlib.PurePosixPath("a/b"), [1.5, None, {"x": (1, 2**70)}]


def state_dicts():
    model = Speech()
    y, _ = model.gru(x)
    state = model.state_dict()
    np.save(HERE / "x.npy", x.numpy())
    save("zip", state)
    expect("zip", "encoder.gru", y)
    save("old", state, old=True)
    for protocol in (0, 1, 3, 4, 5):
        # The old form stores storages by persistent ids, which protocol 0 cannot hold.
        if protocol >= 1:
            save(f"old_protocol{protocol}", model.gru.state_dict(), old=True, pickle_protocol=protocol)
    save("zip_protocol5", model.gru.state_dict(), pickle_protocol=5)
    save("parallel", {"model": torch.nn.DataParallel(model).state_dict(), "epoch": 3})
    save("compiled", {"nets": [{"_orig_mod." + key: value for key, value in state.items()}]})
    save("module", model)
    lightning = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {"model." + key: value for key, value in state.items()},
        "callbacks": {"ModelCheckpoint{'monitor': None}": Callback()},
        "optimizer_states": [torch.optim.Adam(model.parameters()).state_dict()],
        "hyper_parameters": argparse.Namespace(lr=1e-3, device=torch.device("cpu"), dtype=torch.float16, sizes=torch.Size([1, 2])),
        "numbers": np.arange(3.0),
        "scalar": np.float64(2.5),
    }
    save("lightning", lightning)
    save("lightning_old", lightning, old=True)


def types():
    gru = torch.nn.GRU(I, H, bias=False)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        narrow = {key: value.to(dtype) for key, value in gru.state_dict().items()}
        name = str(dtype).removeprefix("torch.")
        save(name, narrow)
        # From the very numbers that the file holds.
        wide = torch.nn.GRU(I, H, bias=False)
        wide.load_state_dict({key: value.float() for key, value in narrow.items()})
        expect(name, "gru", wide(x)[0])
    save("int8", {key: value.to(torch.int8) for key, value in gru.state_dict().items()})


def views():
    """Tensors that are not rows of their own storage."""
    gru = torch.nn.GRU(I, H)
    state = gru.state_dict()
    y, _ = gru(x)
    whole = torch.cat([value.reshape(-1) for value in state.values()])
    shared, at = {}, 0
    for key, value in state.items():
        shared[key] = whole[at : at + value.numel()].view(value.shape)
        at += value.numel()
    wide = torch.zeros(3 * H, 2, H)
    wide[:, 1] = state["weight_hh_l0"]
    views = dict(state)
    views["weight_ih_l0"] = state["weight_ih_l0"].t().contiguous().t()
    views["weight_hh_l0"] = wide[:, 1]
    views["bias_ih_l0"] = torch.stack([state["bias_ih_l0"], state["bias_hh_l0"]], 1)[:, 0]
    for old in (False, True):
        end = "_old" if old else ""
        save(f"shared{end}", shared, old)
        save(f"views{end}", views, old)
    expect("views", "gru", y)
    equal = torch.nn.GRU(I, H)
    equal.bias_ih_l0.data = torch.tensor(0.25).expand(3 * H)
    save("expanded", equal.state_dict())
    expect("expanded", "gru", equal(x)[0])


def forms():
    """Weight norm as both of torch's functions store it, and weight drop as Salesforce's and fastai's code does."""
    for name, normalize in (("norm", weight_norm), ("norm_new", parametrizations.weight_norm)):
        for dim in (0, 1, None):
            gru = torch.nn.GRU(I, H)
            for weight in ("weight_ih_l0", "weight_hh_l0"):
                normalize(gru, weight, dim=dim)
            with torch.no_grad():
                for key, value in gru.named_parameters():
                    value.mul_(1.5 if key.endswith(("_g", "original0")) else 1)
            save(f"{name}_{dim}", {"gru." + key: value for key, value in gru.state_dict().items()})
            # The old form computes the weight before a forward pass. Then a plain nn.GRU takes it.
            gru(x)
            plain = torch.nn.GRU(I, H)
            plain.load_state_dict({key: getattr(gru, key).detach() for key in plain.state_dict()})
            expect(f"{name}_{dim}", "gru", plain(x)[0])
    # A module saved whole also holds the weight of its last forward pass, older than g and v.
    gru = weight_norm(torch.nn.GRU(I, H), "weight_hh_l0")
    gru(x)
    gru.weight_hh_l0_g.data *= 2
    save("norm_module", gru)
    expect("norm_module", "gru", gru(x)[0])
    gru = torch.nn.GRU(I, H)
    state = gru.state_dict()
    raw = {"rnn." + key.replace("weight_hh_l0", "weight_hh_l0_raw"): value for key, value in state.items()}
    # fastai keeps the plain name too, with what the last training step dropped.
    dropped = {"rnn.module." + key: value for key, value in state.items()}
    dropped["rnn.weight_hh_l0_raw"] = state["weight_hh_l0"]
    dropped["rnn.module.weight_hh_l0"] = torch.nn.functional.dropout(state["weight_hh_l0"], 0.5)
    save("drop", raw)
    save("drop_fastai", dropped)
    expect("drop", "gru", gru(x)[0])
    spectral = torch.nn.utils.spectral_norm(torch.nn.GRU(I, H), "weight_hh_l0")
    save("spectral", spectral.state_dict())


class Cells(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.forwards = torch.nn.ModuleList([torch.nn.GRUCell(I, H), torch.nn.GRUCell(2 * H, H)])
        self.backwards = torch.nn.ModuleList([torch.nn.GRUCell(I, H), torch.nn.GRUCell(2 * H, H)])
        self.cell0, self.cell1 = torch.nn.GRUCell(I, H), torch.nn.GRUCell(H, H)

    @staticmethod
    def run(cell, steps):
        h, states = torch.zeros(B, H), []
        for step in steps:
            h = cell(step, h)
            states.append(h)
        return torch.stack(states)


def cells():
    model = Cells()
    save("cells", model.state_dict())
    run = Cells.run
    expect("cells", "cell0", run(model.cell0, x))
    expect("cells", "layers", run(model.cell1, run(model.cell0, x)))
    y = x
    for forward, backward in zip(model.forwards, model.backwards):
        y = torch.cat([run(forward, y), run(backward, y.flip(0)).flip(0)], -1)
    expect("cells", "both", y)


class Script(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(I, H)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]


def script():
    model = torch.jit.script(Script())
    model.save(HERE / "script.pt")
    expect("script", "gru", model(x))


class Classifier(torch.nn.Module):
    """A GRU with a linear head under a name of its own, beside a layer of another shape."""

    def __init__(self, classes=4, bias=True):
        super().__init__()
        self.gru = torch.nn.GRU(I, H, bidirectional=True)
        self.embed = torch.nn.Linear(2 * H, 2 * H)
        self.fc = torch.nn.Linear(2 * H, classes, bias=bias)

    def forward(self, x):
        y, h_n = self.gru(x)
        return self.fc(y), self.fc(torch.cat([*h_n], -1))


def heads():
    """Networks whose head is found by its shape: alone, twice in a checkpoint, among layers of one shape, without bias."""
    torch.manual_seed(6)
    model, average, bare = Classifier(), Classifier(), Classifier(bias=False)
    save("head", model.state_dict())
    save("heads", {"epoch": 3, "model": model.state_dict(), "ema": average.state_dict()})
    save("head_choice", {**model.state_dict(), "aux.weight": average.fc.weight.data, "aux.bias": average.fc.bias.data})
    save("head_bare", bare.state_dict())
    near = {f"enc.{name}": tensor for name, tensor in model.state_dict().items() if name.startswith("gru.")}
    near |= {"enc.proj.weight": average.fc.weight.data, "enc.proj.bias": average.fc.bias.data}
    save("head_near", near | {"fc.weight": model.fc.weight.data, "fc.bias": model.fc.bias.data})
    norm = Classifier()
    norm.fc = weight_norm(norm.fc)
    save("head_norm", norm.state_dict())
    new = Classifier()
    parametrizations.weight_norm(new.fc)
    save("head_norm_new", new.state_dict())
    plain = torch.nn.Module()
    plain.gru, plain.fc = torch.nn.GRU(I, H, bias=False), torch.nn.Linear(H, 4)
    save("head_no_biases", plain.state_dict())
    for name, network in (("head_norm", norm), ("head_norm_new", new), ("head", model), ("heads.ema", average), ("head_bare", bare)):
        every, last = network(x)
        np.save(HERE / f"{name}.every.npy", every.numpy())
        np.save(HERE / f"{name}.last.npy", last[None].numpy())


with torch.no_grad():
    HERE.mkdir(exist_ok=True)
    state_dicts()
    types()
    views()
    cells()
forms()
script()
with torch.no_grad():
    heads()
