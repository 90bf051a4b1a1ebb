#!/usr/bin/env python3
"""Measures a GPU within 12 minutes, step by step, the most informative steps first.

    cargo build --release -p gru-cli -p gpu_probes -p kernel_stats
    python3 benches/gpu.py target/release/gru [--before OLD_GRU] [--steps NAME,NAME] [--budget 720] [--output FOLDER]
    python3 benches/gpu.py target/release/gru --device software --tiny      # a rehearsal without a GPU

Needs the built programs, in one folder, peer_torch.py and gpu_report.py beside this file, and Python's standard library.
It starts with the list of its steps and their times; --steps chooses some, in the order of the list. The GPU's machine
needs neither Rust nor a network.

cuDNN's times appear if torch can be imported and finds a CUDA device: inputs on the device, CUDA events, forward under
inference_mode, training as forward and backward of the sum of y, including the gradient of x; fp32 with TF32 off, unless
a column says otherwise. Our time beside it is the device's own, by timestamps, with the data on the device. Both include
the input product, which DeepBench's published figures leave out.

Writes DATE-ADAPTER.md and .json, again after every measurement. A measurement that fails is reported in its place, and
the next one runs. A step whose time is spent keeps what it has. The exit status is 1 if a program of this project failed.
"""

import argparse, datetime, json, os, platform, queue, re, shutil, subprocess, sys, threading, time

from gpu_report import figures, markdown, row_cells

# T, B, I, H, and DeepBench's times on a V100 in ms: forward, backward data, backward weights. Another GPU, and without
# the input product.
DEEPBENCH = [
    (1500, 32, 2816, 2816, (223, 329, 155)),
    (1500, 32, 2048, 2048, (144, 139, 80)),
    (1500, 32, 1536, 1536, (85, 104, 46)),
    (1500, 32, 1024, 1024, (59, 67, 20)),
    (1500, 64, 1024, 1024, (80, 87, 40)),
    (1, 32, 512, 512, (0.088, 0.100, 0.090)),
]
GRID = [(512, batch, hidden, hidden, None) for hidden in (64, 128, 256) for batch in (1, 32, 256)]
MODES = ("forward", "train")
HERE = os.path.dirname(os.path.abspath(__file__))


class Sizes:
    """What is measured on a GPU."""

    # Shapes of the kernels, and of those that are compiled without index checks too.
    statistics = ["512,32,64,64", "512,32,128,128", "512,256,128,128", "512,32,256,256", "1500,32,1024,1024"]
    statistics_unchecked = ["512,32,64,64", "512,32,128,128", "512,256,128,128"]
    chain = ["--count", "1000"]
    gradients = ["1500,32,1024,1024", "512,256,256,256"]
    # Hidden units, and rows of the batch, of 512 steps.
    persistent, persistent_steps = [(hidden, batch) for hidden in (64, 128) for batch in (32, 256)], 512
    # T, B, I, H of the plan, and m, n, k of the product. 3 · H is a little more than n.
    product, product_mnk = "128,32,4096,1368", (4096, 4096, 4096)
    # T, B, I, H, and for each pass UNIT_QUADS, SPLIT_K, ROW_GROUPS, ROWS, DEPTH_QUADS.
    tiles_shape = (64, 32, 1024, 1024)
    tiles = {
        "forward": [(2, 16, 8, 4, 32), (1, 32, 8, 4, 32), (4, 8, 8, 4, 32), (2, 8, 8, 4, 16), (2, 16, 8, 4, 16),
                    (2, 32, 8, 4, 32), (4, 16, 4, 4, 32)],
        "backward": [(4, 16, 4, 8, 32), (2, 32, 4, 8, 32), (8, 8, 4, 8, 32), (4, 8, 4, 8, 16), (4, 32, 4, 8, 32)],
    }
    tiles_chain = 256
    cudnn = [(512, batch, hidden, hidden) for hidden in (160, 192) for batch in (32, 256)] + [(1500, 32, 1024, 1024)]
    barrier = ["--rounds", "1000"]
    # y has 1 to 256 MiB.
    downloads = [f"{steps},512,1,64" for steps in (8, 64, 256, 512, 2048)]
    # Long rows last, so that most rows exist when the time is spent.
    rows = GRID + DEEPBENCH[::-1]
    growth = ["64,32,256,256", "64,256,1024,4096"]
    growth_repeats = ["--repeats", "5"]
    bench = []


class TinySizes(Sizes):
    """The same steps in seconds, on a software adapter."""

    statistics = statistics_unchecked = ["9,3,5,8"]
    chain = ["--count", "20", "--workgroups", "1,3"]
    gradients = ["3,2,5,8"]
    persistent, persistent_steps = [(8, 3)], 9
    product, product_mnk = "64,32,32,176", (2048, 512, 32)
    tiles_shape = (3, 3, 8, 16)
    tiles = {"forward": [(1, 2, 1, 4, 2), (2, 2, 1, 4, 4)], "backward": [(1, 2, 1, 4, 2)]}
    tiles_chain = 3
    cudnn = [(3, 2, 5, 9)]
    # Two workgroups of a software adapter may not run at once; that is reported.
    barrier = ["--rounds", "3", "--spins", "10000", "--workgroups", "1,2"]
    downloads = ["3,2,1,8"]
    rows = [(4, 2, 8, 8, None), (1, 3, 5, 16, None)]
    growth = ["4,2,8,8", "4,8,16"]
    growth_repeats = []
    bench = ["--repeats", "1"]


# Each step, the seconds that it may take, and what it measures.
STEPS = [
    ("statistics", 50, "the driver's own statistics of the kernels"),
    ("dispatch", 15, "an empty dependent dispatch, arguments in storage and as immediates"),
    ("gradients", 100, "products of the weights' gradients, before and now"),
    ("persistent", 80, "the persistent family: one and two rows a workgroup, index checks on and off"),
    ("product", 25, "the large product beside torch.mm"),
    ("tiles", 35, "other tiles of the step family"),
    ("cudnn", 90, "cuDNN at other H, with TF32 and in fp16"),
    ("barrier", 15, "a barrier between the workgroups of a dispatch"),
    ("downloads", 40, "the rates of downloads"),
    ("rows", 175, "every shape of the table beside cuDNN"),
    ("check", 70, "`gru check`"),
    ("growth", 25, "the time of a step, by the number of steps"),
]
BUDGET = 720
assert sum(seconds for _, seconds, _ in STEPS) <= BUDGET


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gru", help="the built program; gpu_probes and kernel_stats are beside it")
    parser.add_argument("--before", help="an older gru, to compare the gradients' products with")
    parser.add_argument("--device", default="gpu", choices=["gpu", "software"])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to rehearse")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for everything [{BUDGET}]")
    parser.add_argument("--output", default=os.path.join(HERE, "results"))
    parser.add_argument("--steps", help="these steps only: names with commas")
    parser.add_argument("--no-check", action="store_true", help="leave `gru check` out")
    options = parser.parse_args()
    names = [name for name, _, _ in STEPS]
    chosen = options.steps.split(",") if options.steps else names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        parser.error(f"expected steps of {', '.join(names)}, got {', '.join(unknown)}")
    options.steps = [step for step in STEPS if step[0] in chosen and not (options.no_check and step[0] == "check")]
    options.gru = os.path.abspath(options.gru)
    return Measurement(options).run()


class Measurement:
    def __init__(self, options):
        self.options = options
        self.sizes = TinySizes if options.tiny else Sizes
        self.end = self.step_end = time.monotonic() + options.budget
        self.torch = None
        now = datetime.datetime.now(datetime.timezone.utc)
        self.result = {
            "date": now.strftime("%Y-%m-%d %H:%M UTC"), "budget_s": options.budget, "tiny": options.tiny,
            "device": options.device, "python": platform.python_version(), "system": platform.platform(),
            "processor": processor(), "steps": [], "failed": [], "stopped": None, "rows": [],
        }
        self.stamp = now.strftime("%Y-%m-%dT%H%MZ")

    def run(self):
        result, options = self.result, self.options
        print_plan(options)
        info = self.gru("info")
        if "error" in info or "error" in info["device"]:
            print("error:", info.get("error") or info["device"]["error"], file=sys.stderr)
            return 1
        result["version"], result["gru"] = info["version"], info["device"]["device"]
        adapter = next((a for a in info["adapters"] if a["name"] in result["gru"]), {})
        result["adapter"] = {key: adapter.get(key) for key in ("name", "kind", "software", "backend", "driver")}
        result["nvidia_smi"] = nvidia_smi()
        print(f"{result['gru']}, {result['adapter']['driver']}", flush=True)
        result["torch"] = self.start_torch()
        print(f"torch: {result['torch']}", flush=True)
        self.save()
        for step in options.steps:
            if not self.step(*step):
                break
        path = self.save()
        self.stop_torch()
        print(f"wrote {path}.md and .json")
        for failed in result["failed"]:
            print("failed:", failed, file=sys.stderr)
        return 1 if result["failed"] else 0

    def step(self, name, seconds, what):
        """Runs a step. Returns False if no time is left for others."""
        start = time.monotonic()
        self.step_end = min(self.end, start + seconds)
        record = {"name": name, "limit_s": seconds, "stopped": None}
        self.result["steps"].append(record)
        print(f"== {name}: {what}", flush=True)
        try:
            getattr(self, name)()
        except Spent:
            record["stopped"] = "its time was spent"
        except Exception as error:
            # The next step may work all the same.
            record["stopped"] = f"{type(error).__name__}: {error}"
            self.result["failed"].append(f"{name}: {record['stopped']}")
        record["seconds"] = round(time.monotonic() - start, 1)
        if record["stopped"]:
            print(f"   stopped: {record['stopped']}", flush=True)
        left = self.end - time.monotonic()
        if left < 1:
            self.result["stopped"] = f"the budget of {self.options.budget:.0f} s was spent"
        self.save()
        return left >= 1

    def add(self, name, row, says):
        """Keeps a row of a step, in the files too."""
        self.result.setdefault(name, []).append(row)
        print("  ", says, flush=True)
        self.save()

    def left(self):
        return self.step_end - time.monotonic()

    # This project's programs.

    def program(self, command, what):
        """Runs a program and returns its JSON object, or {"error": …}."""
        limit = self.left()
        if limit < 1:
            raise Spent
        answer = answer_of(command, limit)
        if "error" in answer:
            self.result["failed"].append(f"{what}: {answer['error']}")
        return answer

    def gru(self, *arguments, program=None):
        command = [program or self.options.gru, *arguments, "--json", "--device", self.options.device]
        return self.program(command, " ".join(["gru", *arguments]))

    def bench(self, shape, mode, *arguments, program=None):
        repeats = self.sizes.bench
        return self.gru("bench", "--shape", shape, "--mode", mode, *repeats, *arguments, program=program)

    def beside(self, name):
        return os.path.join(os.path.dirname(self.options.gru), name)

    def probe(self, *arguments):
        repeats = ["--repeats", "1"] if self.options.tiny else []
        command = [self.beside("gpu_probes"), *arguments, "--device", self.options.device, *repeats]
        return self.program(command, " ".join(["gpu_probes", *arguments]))

    def kernel(self, name, row, *arguments):
        """Times a kernel by itself and adds it as a row of a step."""
        probe = self.probe("kernel", *arguments)
        row = {**row, "probe": probe}
        says = probe.get("error") or f"{figures(probe['us'])} µs"
        self.add(name, row, f"{' '.join(arguments)}: {says}")
        return row

    # The steps.

    def statistics(self):
        # A software adapter gives none: naga alone compiles the kernels.
        driver = ["--driver"] if self.options.device == "gpu" else ["--family", "none"]
        for checks, shapes in (("checked", self.sizes.statistics), ("unchecked", self.sizes.statistics_unchecked)):
            options = [*driver, "--nvidia", "none", "--checks", checks, "--json"]
            report = self.program([self.beside("kernel_stats"), *shapes, *options], f"kernel_stats, {checks}")
            says = report.get("error") or f"{len(report['kernels'])} kernels"
            self.add("statistics", {"checks": checks, "report": report}, f"{checks}: {says}")

    def dispatch(self):
        self.result["dispatch"] = answer = self.probe("dispatch", *self.sizes.chain)
        print(f"   {answer.get('error') or answer['rows']}", flush=True)

    def gradients(self):
        programs = {"now": None} | ({"before": os.path.abspath(self.options.before)} if self.options.before else {})
        for shape in self.sizes.gradients:
            for when, program in programs.items():
                bench = self.bench(shape, "train", "--profile", program=program)
                says = bench.get("error") or f"compute {figures(bench['compute_ms'])} ms"
                self.add("gradients", {"shape": shape, "when": when, "bench": bench}, f"{shape}, {when}: {says}")

    def persistent(self):
        steps, cases = self.sizes.persistent_steps, self.sizes.persistent
        for hidden, batch in cases:
            shape = f"{steps},{batch},{hidden},{hidden}"
            for mode, kernel in (("forward", "persistent_forward"), ("train", "persistent_backward")):
                for rows in (1, 2):
                    for checks in ("library", "unchecked"):
                        row = {"hidden": hidden, "batch": batch, "kernel": kernel, "rows": rows, "checks": checks}
                        self.kernel(
                            "persistent", row, shape, "--mode", mode, "--kernel", "persistent", "--name", kernel,
                            "--constants", f"ROWS={rows}", "--workgroups", f"1,{-(-batch // rows)},1",
                            "--checks", checks)

    def product(self):
        m, n, k = self.sizes.product_mnk
        for checks in ("library", "unchecked"):
            self.kernel(
                "product", {"mnk": [m, n, k], "checks": checks}, self.sizes.product, "--kernel", "step", "--name",
                "matmul_large", "--args", f"n={n}", "--workgroups", f"{-(-n // 128)},{-(-m // 128)},1",
                "--checks", checks)
        self.result["peak"] = [self.ask_torch({"peak": size}) for size in dict.fromkeys((k, 2 * k))]
        print(f"   torch.mm: {self.result['peak']}", flush=True)

    def tiles(self):
        shape = self.sizes.tiles_shape
        for (kernel, tiles), mode in zip(self.sizes.tiles.items(), MODES):
            fixed = [",".join(map(str, shape)), "--mode", mode, "--kernel", "step", "--name", kernel,
                     "--chain", str(self.sizes.tiles_chain)]
            self.kernel("tiles", {"kernel": kernel, "tile": None}, *fixed)
            for unit_quads, split_k, row_groups, rows, depth in tiles:
                names = ("UNIT_QUADS", "SPLIT_K", "ROW_GROUPS", "ROWS", "DEPTH_QUADS")
                tile = dict(zip(names, (unit_quads, split_k, row_groups, rows, depth)))
                constants = ",".join(f"{name}={value}" for name, value in tile.items())
                x, y = -(-shape[3] // (4 * unit_quads)), -(-shape[1] // (rows * row_groups))
                row = {"kernel": kernel, "tile": tile}
                self.kernel("tiles", row, *fixed, "--constants", constants, "--workgroups", f"{x},{y},1")

    def cudnn(self):
        for shape in self.sizes.cudnn:
            for mode in MODES:
                row = {"shape": shape, "mode": mode}
                for precision in ("fp32", "tf32", "fp16"):
                    row[precision] = self.ask_torch({"shape": shape, "mode": mode, "precision": precision})
                row["ours"] = self.bench(",".join(map(str, shape)), mode)
                says = row["ours"].get("error") or f"ours {figures(row['ours']['compute_ms'])} ms"
                self.add("cudnn", row, f"{shape}, {mode}: {says}")

    def barrier(self):
        self.result["barrier"] = answer = self.probe("grid-barrier", *self.sizes.barrier)
        print(f"   {answer.get('error') or answer['rows']}", flush=True)

    def downloads(self):
        for shape in self.sizes.downloads:
            bench = self.bench(shape, "forward")
            says = bench.get("error") or f"{figures(bench['download_gbytes_per_s'])} GB/s"
            self.add("downloads", {"shape": shape, "bench": bench}, f"{shape}: {says}")

    def rows(self):
        for *shape, deepbench in self.sizes.rows:
            for mode in MODES:
                ours = self.bench(",".join(map(str, shape)), mode)
                row = {"shape": shape, "mode": mode, "deepbench_v100_ms": deepbench, "ours": ours}
                row["cudnn"] = self.ask_torch({"shape": shape, "mode": mode})
                self.add("rows", row, "  ".join(row_cells(row)))

    def check(self):
        limit, start = self.left(), time.monotonic()
        command = [self.options.gru, "check", "--device", self.options.device]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            self.result["check"] = {"passed": None, "says": f"not done within {limit:.0f} s"}
            raise Spent
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        wrong = [line.strip() for line in done.stdout.splitlines() if "WRONG" in line]
        says, seconds = "; ".join(wrong[:5] + lines[-1:]), round(time.monotonic() - start, 1)
        self.result["check"] = {"passed": done.returncode == 0, "says": says, "seconds": seconds}
        print(f"   {says}", flush=True)
        if done.returncode != 0:
            self.result["failed"].append(f"gru check: {says}")

    def growth(self):
        shape, sizes = self.sizes.growth
        picture = os.path.join(self.options.output, self.name() + "-growth.svg")
        self.result["growth"] = self.bench(
            shape, "forward", *self.sizes.growth_repeats, "--sweep", "T=" + sizes, "--output", picture)

    # cuDNN runs in peer_torch.py, a separate process that may die.

    def start_torch(self):
        if self.options.device != "gpu":
            return {"error": "not asked: this is a software adapter"}
        command = [sys.executable, os.path.join(HERE, "peer_torch.py")]
        try:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.torch = subprocess.Popen(command, text=True, **pipes)
        except OSError as error:
            return {"error": str(error)}
        self.answers = queue.Queue()
        threading.Thread(target=read_lines, args=(self.torch.stdout, self.answers), daemon=True).start()
        answer = self.answer(min(120, self.left()))
        if "error" in answer:
            self.stop_torch()
        return answer

    def answer(self, limit):
        try:
            line = self.answers.get(timeout=max(limit, 0.1))
        except queue.Empty:
            return {"error": f"not done within {limit:.0f} s"}
        return json.loads(line) if line else {"error": "its process ended"}

    def ask_torch(self, request):
        if self.torch is None:
            return {"error": "no torch with CUDA here"}
        if self.left() < 1:
            raise Spent
        try:
            self.torch.stdin.write(json.dumps(request) + "\n")
            self.torch.stdin.flush()
            answer = self.answer(self.left())
        except OSError as error:
            answer = {"error": str(error)}
        # A late answer would be taken for the answer to the next request.
        if "error" in answer and not answer.get("alive"):
            self.stop_torch()
            self.result.setdefault("torch_restarts", []).append(answer["error"])
            self.start_torch()
        return answer

    def stop_torch(self):
        if self.torch is not None:
            self.torch.kill()
            self.torch.wait()
            self.torch = None

    # Files.

    def name(self):
        adapter = self.result["adapter"]
        kind = "software-adapter-" if adapter["software"] else ""
        slug = re.sub(r"[^a-z0-9]+", "-", (adapter["name"] or "unknown").lower()).strip("-")
        return f"{self.stamp}-{kind}{slug}" + ("-tiny" if self.options.tiny else "")

    def save(self):
        os.makedirs(self.options.output, exist_ok=True)
        path = os.path.join(self.options.output, self.name())
        for ending, text in ((".json", json.dumps(self.result, indent=1) + "\n"), (".md", markdown(self.result))):
            with open(path + ending + ".part", "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(path + ending + ".part", path + ending)
        return path


class Spent(Exception):
    """The time of a step is spent."""


def print_plan(options):
    total = 0
    for name, seconds, what in options.steps:
        print(f"{total // 60:2}:{total % 60:02}  {seconds:3} s  {name}: {what}")
        total += seconds
    print(f"{total // 60:2}:{total % 60:02}  at most, within a budget of {options.budget:.0f} s", flush=True)


def answer_of(command, limit):
    """Runs a program and returns the JSON object that it prints, or {"error": …}."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        # A sweep in which some sizes failed is a result too.
        if done.returncode == 0 or done.stdout:
            return json.loads(done.stdout)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return {"error": (lines or done.stderr.splitlines() or ["no word"])[-1], "status": done.returncode}
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {limit:.0f} s"}
    except FileNotFoundError:
        return {"error": f"there is no {command[0]}: build it with cargo build, as the head of this script says"}
    except (OSError, ValueError) as error:
        return {"error": str(error)}


def read_lines(stream, answers):
    for line in stream:
        answers.put(line)
    answers.put(None)


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]}, {len(names)} threads" if names else platform.processor()
    except OSError:
        return platform.processor()


def nvidia_smi():
    if not shutil.which("nvidia-smi"):
        return None
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.total"
    command = ["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        lines = done.stdout.strip().splitlines()
        return dict(zip(fields.split(","), lines[0].split(", "))) if lines else None
    except (OSError, subprocess.TimeoutExpired):
        return None


if __name__ == "__main__":
    sys.exit(main())
