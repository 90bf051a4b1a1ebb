"""Compares this library's speed with other libraries in one run, taking turns.

    cargo bench --bench peer_times --no-run                            # once
    python benches/against_peers.py [T,B,I,H ...] [--only forward|train|step] [--rounds N]
    python benches/against_peers.py --device software --peers burn ort-webgpu \\
        --burn benches/peers/target/release/peers 16,8,64,64 64,32,128,256

Peers on the CPU: ort, torch, burn, candle. Peers on an adapter: burn and ort-webgpu. ort-webgpu needs the package
onnxruntime-ep-webgpu. Without a GPU it runs on SwiftShader (its Dawn refuses Mesa's lavapipe): set
ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1, and VK_DRIVER_FILES to SwiftShader's vk_swiftshader_icd.json, and all
contenders run on it. The program in benches/peers times Burn and Candle.

The Python peers need numpy, onnx, onnxruntime and torch. Each contender is a separate process. The processes take
turns, so that a slow moment of the machine affects all of them. A number is the median of all repeats of all
rounds, in ms; a call ends with its results in host memory. `ours / peer` below 1 means that this library is
faster. There is a pause before each turn, because ONNX Runtime's threads spin for 40 ms after their last call.
Use more repeats for short calls: some virtual machines give a second thread a core of its own only after 15 ms. A software adapter computes on the CPU and is not a GPU.

With --only step a call is one step of a stream, with the state carried (T is not used), and the 99th percentile of
all calls stands behind the median.

With --cpu-time a number is the CPU time of a call, with every contender on one thread (Linux). Use it on a shared
machine, where wall time depends on the other users.
"""

import argparse
import functools
import glob
import os
import statistics
import subprocess
import sys
import time

from peer_torch import gru_once

SHAPES = [
    "128,1,64,128", "64,32,128,256", "128,64,256,512", "25,16,1024,1024",
    "127,1,63,129", "63,31,127,255", "127,65,255,513", "25,17,1023,1025",
]

PEERS = {
    "ort": "ONNX Runtime", "torch": "PyTorch", "burn": "Burn", "candle": "Candle",
    "ort-webgpu": "ONNX Runtime WebGPU",
}

MODES = {
    "ort": ["forward", "step"], "ort-webgpu": ["forward"], "torch": ["forward", "train", "step"],
    "burn": ["forward", "train"], "candle": ["forward", "train"],
}

# Seconds before each turn.
PAUSE = 0.06

THREADS = int(os.environ.get("RAYON_NUM_THREADS", os.cpu_count()))


# Enumerated once per process.
webgpu_devices = []


def times(once, repeats):
    taken = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        once()
        if repeat >= 2:
            taken.append((time.perf_counter() - start) * 1e3)
    return taken


def ort_once(mode, steps, batch, inputs, hidden, webgpu=False):
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    assert mode in ("forward", "step")
    is_step = mode == "step"
    steps = 1 if is_step else steps
    random = np.random.default_rng(0)

    def array(*shape):
        return (random.standard_normal(shape) * 0.1).astype(np.float32)

    weights = {"W": array(1, 3 * hidden, inputs), "R": array(1, 3 * hidden, hidden), "B": array(1, 6 * hidden)}
    state = ["", "H0"] if is_step else []
    node = helper.make_node("GRU", ["X", *weights, *state], ["Y", "Y_h"], hidden_size=hidden, linear_before_reset=1)

    def info(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node], "gru", [info("X", steps, batch, inputs), *([info("H0", 1, batch, hidden)] if is_step else [])],
        [info("Y", steps, 1, batch, hidden), info("Y_h", 1, batch, hidden)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=9)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    if webgpu:
        import onnxruntime_ep_webgpu as provider

        if not webgpu_devices:
            ort.register_execution_provider_library("webgpu", provider.get_library_path())
            webgpu_devices.extend(d for d in ort.get_ep_devices() if d.ep_name == provider.get_ep_name())
        options.add_provider_for_devices(webgpu_devices[:1], {})
        session = ort.InferenceSession(model.SerializeToString(), options)
    else:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"X": array(steps, batch, inputs)}
    if not is_step:
        return lambda: session.run(None, feed)
    feed["H0"] = array(1, batch, hidden)

    def step():
        feed["H0"] = session.run(["Y_h"], feed)[0]

    return step


def torch_once(mode, steps, batch, inputs, hidden):
    import torch

    torch.set_num_threads(THREADS)
    if mode == "step":
        steps = 1
    return gru_once(mode, (steps, batch, inputs, hidden))


def work(peer):
    """Answers requests on stdin, one per line, as benches/peer_times.rs does."""
    for line in sys.stdin:
        mode, shape, repeats = line.split()
        make = {"ort": ort_once, "ort-webgpu": functools.partial(ort_once, webgpu=True), "torch": torch_once}[peer]
        once = make(mode, *map(int, shape.split(",")))
        print(*(f"{ms:.4f}" for ms in times(once, int(repeats))), flush=True)


class Contender:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, mode, shape, repeats):
        time.sleep(PAUSE)
        self.process.stdin.write(f"{mode} {shape} {repeats}\n")
        self.process.stdin.flush()
        return [float(word) for word in self.process.stdout.readline().split()]

    def ask_cpu_time(self, mode, shape, repeats):
        """Returns the CPU time of a call in ms, without the start-up before the repeats."""
        def spent(repeats):
            before = self.ticks()
            self.ask(mode, shape, repeats)
            return self.ticks() - before

        start = spent(0)
        return [max(spent(repeats) - start, 0) / repeats / os.sysconf("SC_CLK_TCK") * 1e3]

    def ticks(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])


def enough(shape, mode):
    """Returns how many repeats take about 1.5 s, so that clock ticks of 10 ms do not matter."""
    steps, batch, inputs, hidden = map(int, shape.split(","))
    flops = 6 * steps * batch * hidden * (inputs + hidden) * (3 if mode == "train" else 1)
    return max(5, round(1.2e11 / flops))


def time_text(mode, values):
    """The median, in ms; of a step in µs, with the 99th percentile."""
    if mode != "step":
        return f"{statistics.median(values):.2f}"
    p99 = statistics.quantiles(values, n=100)[98]
    return f"{statistics.median(values) * 1e3:.1f} µs, p99 {p99 * 1e3:.1f}"


def own_program():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(root, "target"))
    built = [p for p in glob.glob(f"{target}/release/deps/peer_times-*") if os.access(p, os.X_OK) and not p.endswith(".d")]
    if not built:
        sys.exit("error: build it first: cargo bench --bench peer_times --no-run")
    return max(built, key=os.path.getmtime)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["forward", "train", "step"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "software", "gpu"])
    parser.add_argument("--peers", nargs="*", default=["ort", "torch"], choices=PEERS)
    parser.add_argument("--burn", help="the program of benches/peers, for burn and candle")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--worker", choices=["ort", "ort-webgpu", "torch"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker)
    os.environ["GRU_DEVICE"] = args.device
    if args.cpu_time:
        os.environ["RAYON_NUM_THREADS"] = "1"
    contenders = {"ours": Contender([own_program()])}
    for peer in args.peers:
        if peer in ("burn", "candle"):
            if not args.burn:
                parser.error(f"{peer} needs --burn PROGRAM")
            backend = {"burn": "burn-flex" if args.device == "cpu" else "burn-wgpu", "candle": "candle"}[peer]
            contenders[peer] = Contender([args.burn, backend])
        else:
            contenders[peer] = Contender([sys.executable, os.path.abspath(__file__), "--worker", peer])
    print("| T,B,I,H | | ours, ms |", " | ".join(f"{PEERS[peer]} | ours / it" for peer in args.peers), "|")
    print("|---|---|---|" + "---|---|" * len(args.peers))
    for shape in args.shapes:
        for mode in [args.only] if args.only else ["forward", "train"]:
            names = [name for name in contenders if name == "ours" or mode in MODES[name]]
            taken = {name: [] for name in names}
            for name in names:
                # Imports and first use of memory, which are not part of a call.
                contenders[name].ask(mode, shape, 0)
            for _ in range(args.rounds):
                for name in names:
                    if args.cpu_time:
                        taken[name] += contenders[name].ask_cpu_time(mode, shape, enough(shape, mode))
                    else:
                        taken[name] += contenders[name].ask(mode, shape, args.repeats)
            median = {name: statistics.median(values) for name, values in taken.items()}
            shown = {name: time_text(mode, values) for name, values in taken.items()}
            cells = [shape, mode, shown["ours"]]
            for peer in args.peers:
                known = peer in median
                cells += [shown[peer], f"{median['ours'] / median[peer]:.2f}"] if known else ["", ""]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
