#!/usr/bin/env python3
"""Measures a GPU in one call: `gru check`, every shape beside PyTorch's cuDNN, growth, and the large products.

    python3 benches/gpu.py target/release/gru [--budget 540] [--output benches/results]
    python3 benches/gpu.py target/release/gru --device software --tiny      # a rehearsal without a GPU

Needs a built `gru`, peer_torch.py beside this file and Python's standard library. The cuDNN column appears if torch
can be imported and finds a CUDA device: fp32, TF32 off, inputs on the device, CUDA events, forward under inference_mode,
training as forward and backward of the sum of y, including the gradient of x. Our time beside it is the device's own,
by timestamps, with the data on the device; the time of the whole call, from arrays to arrays, is a separate column.
Both include the input product, which DeepBench's published figures leave out.

Writes DATE-ADAPTER.md and .json, again after every row. A row that fails is reported in its place. When the time budget
is spent, the rows so far are kept.
"""

import argparse, datetime, json, os, platform, queue, re, shutil, subprocess, sys, threading, time

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
TINY = [(4, 2, 8, 8, None), (1, 3, 5, 16, None)]
# The shapes at which the large products and the growth are measured.
PROFILED, PROFILED_TINY = (1500, 32, 1024, 1024), (6, 4, 16, 24)
GROWTH, GROWTH_TINY = ("64,32,256,256", "64,256,1024,4096"), ("4,2,8,8", "4,8,16")
MODES = ("forward", "train")
ROW_LIMIT = 150  # seconds
HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gru", help="the built program")
    parser.add_argument("--device", default="gpu", choices=["gpu", "software"])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to rehearse")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything [540]")
    parser.add_argument("--output", default=os.path.join(HERE, "results"))
    parser.add_argument("--no-check", action="store_true", help="leave `gru check` out")
    options = parser.parse_args()
    options.gru = os.path.abspath(options.gru)
    return Measurement(options).run()


class Measurement:
    def __init__(self, options):
        self.options = options
        self.end = time.monotonic() + options.budget
        self.torch = None
        now = datetime.datetime.now(datetime.timezone.utc)
        self.result = {
            "date": now.strftime("%Y-%m-%d %H:%M UTC"), "budget_s": options.budget, "tiny": options.tiny,
            "device": options.device, "python": platform.python_version(), "system": platform.platform(),
            "processor": processor(), "rows": [], "stopped": None,
        }
        self.stamp = now.strftime("%Y-%m-%dT%H%MZ")

    def left(self):
        return self.end - time.monotonic()

    def run(self):
        result, options = self.result, self.options
        info = self.gru(["info", "--json"], 60)
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
        if not options.no_check:
            result["check"] = self.check()
            print(f"check: {result['check']}", flush=True)
        self.save()
        for part in (self.rows, self.products, self.growth):
            try:
                part()
            except Spent:
                result["stopped"] = f"the budget of {options.budget:.0f} s was spent"
                break
            self.save()
        path = self.save()
        self.stop_torch()
        print(f"wrote {path}.md and .json")
        good = [row for row in result["rows"] if "error" not in row["ours"]]
        return 0 if good and result.get("check", {}).get("passed") is not False else 1

    # Ours.

    def gru(self, arguments, limit):
        """Runs `gru` and returns its JSON object, or {"error": …}."""
        limit = min(limit, self.left())
        if limit < 1:
            raise Spent
        try:
            command = [self.options.gru, *arguments, "--device", self.options.device]
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
            # A sweep in which some sizes failed is a result too.
            if done.returncode == 0 or done.stdout:
                return json.loads(done.stdout)
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            return {"error": (lines or done.stderr.splitlines() or ["no word"])[-1], "status": done.returncode}
        except subprocess.TimeoutExpired:
            return {"error": f"not done within {limit:.0f} s"}
        except (OSError, ValueError) as error:
            return {"error": str(error)}

    def check(self):
        limit, start = min(ROW_LIMIT, self.left() / 3), time.monotonic()
        command = [self.options.gru, "check", "--device", self.options.device]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"passed": None, "says": f"not done within {limit:.0f} s"}
        except OSError as error:
            return {"passed": False, "says": str(error)}
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        wrong = [line.strip() for line in done.stdout.splitlines() if "WRONG" in line]
        says = "; ".join(wrong[:5] + lines[-1:])
        return {"passed": done.returncode == 0, "says": says, "seconds": round(time.monotonic() - start, 1)}

    def rows(self):
        # Long rows last, so that most rows exist when the budget is spent.
        for *shape, deepbench in TINY if self.options.tiny else GRID + DEEPBENCH[::-1]:
            for mode in MODES:
                sizes = ",".join(map(str, shape))
                ours = self.gru(["bench", "--json", "--shape", sizes, "--mode", mode], ROW_LIMIT)
                row = {"shape": shape, "mode": mode, "deepbench_v100_ms": deepbench, "ours": ours}
                row["cudnn"] = self.ask_torch({"shape": shape, "mode": mode})
                self.result["rows"].append(row)
                print("  ".join(row_cells(row)), flush=True)
                self.save()

    def products(self):
        shape = PROFILED_TINY if self.options.tiny else PROFILED
        sizes = ",".join(map(str, shape))
        self.result["peak"] = self.ask_torch({"peak": 256 if self.options.tiny else 8192})
        profile = self.gru(["bench", "--json", "--profile", "--mode", "train", "--shape", sizes], ROW_LIMIT)
        self.result["profile"] = profile

    def growth(self):
        shape, sizes = GROWTH_TINY if self.options.tiny else GROWTH
        picture = os.path.join(self.options.output, self.name() + "-growth.svg")
        arguments = ["bench", "--json", "--shape", shape, "--sweep", "T=" + sizes, "--output", picture]
        self.result["growth"] = self.gru(arguments, ROW_LIMIT)

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
            answer = self.answer(min(ROW_LIMIT, self.left()))
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
    """The time budget is spent."""


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


# Text.


def figures(value):
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def row_cells(row):
    ours, cudnn = row["ours"], row["cudnn"]
    cells = ["%d, %d, %d, %d" % tuple(row["shape"]), row["mode"]]
    if "error" in ours:
        cells += [ours["error"], "", "", "", ""]
    else:
        cells += [figures(ours[key]) for key in ("median_ms", "compute_ms", "us_per_step", "compute_gflops")]
        cells += [str(ours["dispatches"])]
    if "error" in cudnn:
        cells += ["–" if cudnn["error"].startswith("no torch") else cudnn["error"], "", ""]
    else:
        cells += [figures(cudnn["median_ms"]), figures(1e3 * cudnn["median_ms"] / row["shape"][0])]
        cells += [figures(ours["compute_ms"] / cudnn["median_ms"]) if "error" not in ours else ""]
    v100 = row["deepbench_v100_ms"]
    cells += ["" if not v100 else figures(v100[0]) if row["mode"] == "forward" else figures(sum(v100))]
    return cells


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines) + "\n"


def markdown(result):
    adapter, smi = result["adapter"], result["nvidia_smi"]
    software = adapter["software"]
    text = [f"# {'Software adapter' if software else 'GPU'}: {adapter['name']}, {result['date']}\n"]
    if software:
        text.append("A rehearsal on a software adapter, which is a program on the CPU and no GPU: not to be compared.\n")
    facts = [f"gru-wgpu {result['version']}, {result['gru']}; driver {adapter['driver']}"]
    if smi:
        facts.append("nvidia-smi: " + ", ".join(f"{key} {value}" for key, value in smi.items()))
    torch = result["torch"]
    facts.append("cuDNN: " + (torch["error"] if "error" in torch else
                 f"torch {torch['torch']}, CUDA {torch['cuda']}, cuDNN {torch['cudnn']} on {torch['name']}, fp32, TF32 off"))
    facts.append(f"host: {result['processor']}, {result['system']}, Python {result['python']}")
    if "check" in result:
        check = result["check"]
        word = {True: "passed", False: "FAILED", None: "open"}[check["passed"]]
        facts.append(f"`gru check`: {word}: {check['says']}")
    if result["stopped"]:
        facts.append(f"stopped early: {result['stopped']}")
    text.append("\n".join("- " + fact for fact in facts) + "\n")
    text.append("## Rows\n")
    text.append("call: from arrays to arrays, host clock. compute: the device's own time, data on the device"
                f" ({clocks(result)}). ratio: compute over cuDNN, below 1 is faster. Medians, ms.\n")
    header = ["T, B, I, H", "mode", "call", "compute", "µs a step", "GFLOP/s", "dispatches", "cuDNN", "µs a step", "ratio",
              "V100 in DeepBench, no input product"]
    text.append(table(header, map(row_cells, result["rows"])))
    for part in (products_text, growth_text):
        text += part(result)
    return "\n".join(text)


def clocks(result):
    seen = {row["ours"]["compute_clock"] for row in result["rows"] if "error" not in row["ours"]}
    words = {"adapter": "timestamps", "host": "host clock: the adapter has no timestamps"}
    return ", ".join(words[clock] for clock in sorted(seen)) or "nothing measured"


def products_text(result):
    profile, peak = result.get("profile"), result.get("peak", {})
    if not profile:
        return []
    if "error" in profile:
        return ["## Kernels\n", profile["error"] + "\n"]
    measured = peak.get("gflops")
    lines = ["## Kernels\n", "Training, T, B, I, H = %d, %d, %d, %d, each dispatch timed for itself." % tuple(profile["shape"])]
    if measured:
        lines.append(f"Measured peak: {measured:.0f} GFLOP/s, torch.mm of {peak['size']}² in fp32, TF32 off.")
    header = ["kernel", "calls", "ms", "share", "GFLOP/s", "of the peak", "GB/s"]
    rows = [[f"{k['kernel']}: {k['label']}", str(k["calls"]), figures(k["ms"]), f"{100 * k['share']:.1f} %",
             figures(k["gflops"]), f"{100 * k['gflops'] / measured:.0f} %" if measured else "–", figures(k["gbytes_per_s"])]
            for k in profile["profile"]]
    return [*lines, "", table(header, rows)]


def growth_text(result):
    growth = result.get("growth")
    if not growth:
        return []
    if "error" in growth:
        return ["## Growth\n", growth["error"] + "\n"]
    points = growth["points"]
    steps = [point["us_per_step"] for point in points]
    header = ["T", "compute ms", "µs a step", "call ms", "MB held, by the plan"]
    rows = [[str(p["shape"][0]), figures(p["compute_ms"]), figures(p["us_per_step"]), figures(p["median_ms"]),
             figures(p["plan_bytes"] / 1e6)] for p in points]
    spread = 100 * (max(steps) / min(steps) - 1)
    failed = [f"- T {failed['value']} failed: {failed['error']}\n" for failed in growth["failed"]]
    return ["## Growth\n", "B, I, H = %d, %d, %d, forward; from T to T a step's time differs by %.0f %% at most.\n"
            % (*points[0]["shape"][1:], spread), table(header, rows), *failed]


if __name__ == "__main__":
    sys.exit(main())
