"""The report of gpu.py in Markdown, from what it has measured so far."""


def figures(value):
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def markdown(result):
    adapter = result["adapter"]
    text = [f"# {'Software adapter' if adapter['software'] else 'GPU'}: {adapter['name']}, {result['date']}\n"]
    if adapter["software"]:
        text.append("A rehearsal on a software adapter, which is a program on the CPU and no GPU: not to be compared.\n")
    text.append("\n".join("- " + fact for fact in facts(result)) + "\n")
    for name, section in SECTIONS.items():
        if result.get(name):
            text += section(result)
    return "\n".join(text)


def facts(result):
    adapter, smi, torch = result["adapter"], result["nvidia_smi"], result["torch"]
    yield f"gru-wgpu {result['version']}, {result['gru']}; driver {adapter['driver']}"
    if smi:
        yield "nvidia-smi: " + ", ".join(f"{key} {value}" for key, value in smi.items())
    yield "cuDNN: " + (torch["error"] if "error" in torch else
                       f"torch {torch['torch']}, CUDA {torch['cuda']}, cuDNN {torch['cudnn']} on {torch['name']}")
    yield f"host: {result['processor']}, {result['system']}, Python {result['python']}"
    if "check" in result:
        check = result["check"]
        word = {True: "passed", False: "FAILED", None: "open"}[check["passed"]]
        yield f"`gru check`: {word}: {check['says']}"
    for step in result["steps"]:
        if step["stopped"]:
            yield f"{step['name']}: stopped: {step['stopped']}"
    if result["stopped"]:
        yield f"stopped early: {result['stopped']}"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines) + "\n"


def value(answer, key, divisor=1.0):
    """Returns a cell: a number of an answer, or the error in its place."""
    if "error" in answer:
        return "–" if answer["error"].startswith("no torch") else answer["error"]
    return "–" if answer[key] is None else figures(answer[key] / divisor)


def statistics(result):
    text = ["## The driver's statistics\n"]
    for part in result["statistics"]:
        checks, report = part["checks"], part["report"]
        text.append(f"Index checks: {checks}.\n")
        text.append(report["error"] + "\n" if "error" in report else kernels_table(report["kernels"]))
    return text


def kernels_table(kernels):
    names = list(dict.fromkeys(name for row in kernels for name in row["driver"] or ()))
    rows = []
    for row in kernels:
        constants = " ".join(f"{name}={value:.0f}" for name, value in row["constants"].items() if value)
        driver = row["driver"] or {}
        rows.append([row["kernel"], constants, row["used_by"][0], str(row["threads"]), str(row["workgroup_bytes"]),
                     *(str(driver.get(name, "–")) for name in names)])
    return table(["kernel", "constants", "plan", "threads", "workgroup memory, B", *names], rows)


def dispatch(result):
    answer = result["dispatch"]
    if "error" in answer:
        return ["## An empty dependent dispatch\n", answer["error"] + "\n"]
    rows = [[str(row["workgroups"]), value(row, "storage_us"), value(row, "immediates_us")] for row in answer["rows"]]
    return ["## An empty dependent dispatch\n", f"µs, of a chain of {answer['dispatches']}.\n",
            table(["workgroups", "arguments in storage", "as immediates"], rows)]


def gradients(result):
    text = ["## Gradient products\n", "Training, each dispatch timed for itself.\n"]
    rows, peak = [], measured_peak(result)
    for row in result["gradients"]:
        bench = row["bench"]
        if "error" in bench:
            rows.append([row["shape"], row["when"], bench["error"], "", "", "", "", ""])
            continue
        for kernel in bench["profile"]:
            cells = [str(kernel["calls"]), figures(kernel["ms"]), f"{100 * kernel['share']:.1f} %",
                     figures(kernel["gflops"]), f"{100 * kernel['gflops'] / peak:.0f} %" if peak else "–"]
            rows.append([row["shape"], row["when"], f"{kernel['kernel']}: {kernel['label']}", *cells])
        ours = [kernel for kernel in bench["profile"] if kernel["label"].startswith(("dW", "db"))]
        total = sum(kernel["ms"] for kernel in ours)
        calls = str(sum(kernel["calls"] for kernel in ours))
        rows.append([row["shape"], row["when"], "all gradients of weights and biases", calls, figures(total), "", "", ""])
    header = ["T, B, I, H", "when", "kernel", "calls", "ms", "share", "GFLOP/s", "of torch.mm's"]
    return [*text, table(header, rows)]


def measured_peak(result):
    return max((peak["gflops"] for peak in result.get("peak", ()) if "error" not in peak), default=None)


def persistent(result):
    keys = ("hidden", "batch", "kernel", "rows", "checks")
    rows = [[*(str(row[key]) for key in keys), value(row["probe"], "us", 1e3), value(row["probe"], "us_per_step")]
            for row in result["persistent"]]
    header = ["H", "B", "kernel", "rows a workgroup", "index checks", "ms", "µs a step"]
    return ["## The persistent family\n", "One dispatch by itself, on random numbers.\n", table(header, rows)]


def product(result):
    rows = []
    for row in result["product"]:
        m, n, k = row["mnk"]
        probe = row["probe"]
        gflops = value(probe, "us") if "error" in probe else figures(2e-3 * m * n * k / probe["us"])
        rows.append([f"matmul_large, {row['checks']}", f"{m} × {n} × {k}", value(probe, "us", 1e3), gflops])
    for peak in result.get("peak", ()):
        if "error" not in peak:
            size = peak["size"]
            rows.append(["torch.mm, TF32 off", f"{size} × {size} × {size}", figures(2e-6 * size**3 / peak["gflops"]),
                         figures(peak["gflops"])])
    return ["## The large product\n", table(["kernel", "m × n × k", "ms", "GFLOP/s"], rows)]


def tiles(result):
    rows = []
    for row in result["tiles"]:
        probe = row["probe"]
        shown = row["tile"] or {name: count for name, count in probe.get("constants", {}).items() if count}
        words = " ".join(f"{name}={count}" for name, count in shown.items())
        rows.append([row["kernel"], words + ("" if row["tile"] else " (the plan's)"),
                     "×".join(map(str, probe.get("workgroups", ()))), value(probe, "us")])
    return ["## Tiles of the step family\n", table(["kernel", "tile", "workgroups", "µs a step"], rows)]


def cudnn(result):
    rows = [["%d, %d, %d, %d" % tuple(row["shape"]), row["mode"],
             *(value(row[precision], "median_ms") for precision in ("fp32", "tf32", "fp16")),
             value(row["ours"], "compute_ms")] for row in result["cudnn"]]
    header = ["T, B, I, H", "mode", "cuDNN fp32", "TF32", "fp16", "ours, fp32"]
    return ["## cuDNN's other precisions\n", "Medians, ms.\n", table(header, rows)]


def barrier(result):
    answer = result["barrier"]
    if "error" in answer:
        return ["## A barrier between workgroups\n", answer["error"] + "\n"]
    rows = [[str(row["workgroups"]), value(row, "us")] for row in answer["rows"]]
    return ["## A barrier between workgroups\n", f"µs, of {answer['rounds']} in one dispatch.\n",
            table(["workgroups", "µs a barrier"], rows)]


def downloads(result):
    keys = ("download_gbytes_per_s", "download_copy_gbytes_per_s", "download_new_copy_gbytes_per_s",
            "upload_gbytes_per_s", "median_ms", "into_ms")
    rows = []
    for row in result["downloads"]:
        bench = row["bench"]
        size = "–" if "error" in bench else figures(bench["download_bytes"] / 2**20)
        rows.append([row["shape"], size, *(value(bench, key) for key in keys)])
    header = ["T, B, I, H", "MiB down", "download, GB/s", "a copy", "a copy to new memory", "upload, GB/s",
              "call, ms", "call into arrays, ms"]
    return ["## Downloads\n", table(header, rows)]


def rows(result):
    header = ["T, B, I, H", "mode", "call", "compute", "µs a step", "GFLOP/s", "dispatches", "cuDNN", "µs a step", "ratio",
              "V100 in DeepBench, no input product"]
    text = ("call: from arrays to arrays, host clock. compute: the device's own time, data on the device"
            f" ({clocks(result)}). ratio: compute over cuDNN, below 1 is faster. Medians, ms.\n")
    return ["## Rows\n", text, table(header, map(row_cells, result["rows"]))]


def row_cells(row):
    ours, peer = row["ours"], row["cudnn"]
    cells = ["%d, %d, %d, %d" % tuple(row["shape"]), row["mode"]]
    if "error" in ours:
        cells += [ours["error"], "", "", "", ""]
    else:
        cells += [figures(ours[key]) for key in ("median_ms", "compute_ms", "us_per_step", "compute_gflops")]
        cells += [str(ours["dispatches"])]
    if "error" in peer:
        cells += [value(peer, "median_ms"), "", ""]
    else:
        cells += [figures(peer["median_ms"]), figures(1e3 * peer["median_ms"] / row["shape"][0])]
        cells += [figures(ours["compute_ms"] / peer["median_ms"]) if "error" not in ours else ""]
    v100 = row["deepbench_v100_ms"]
    cells += ["" if not v100 else figures(v100[0]) if row["mode"] == "forward" else figures(sum(v100))]
    return cells


def clocks(result):
    seen = {row["ours"]["compute_clock"] for row in result["rows"] if "error" not in row["ours"]}
    words = {"adapter": "timestamps", "host": "host clock: the adapter has no timestamps"}
    return ", ".join(words[clock] for clock in sorted(seen)) or "nothing measured"


def growth(result):
    answer = result["growth"]
    if "error" in answer:
        return ["## Growth\n", answer["error"] + "\n"]
    points = answer["points"]
    steps = [point["us_per_step"] for point in points]
    header = ["T", "compute ms", "µs a step", "call ms", "MB held, by the plan"]
    cells = [[str(p["shape"][0]), figures(p["compute_ms"]), figures(p["us_per_step"]), figures(p["median_ms"]),
              figures(p["plan_bytes"] / 1e6)] for p in points]
    failed = [f"- T {failed['value']} failed: {failed['error']}\n" for failed in answer["failed"]]
    if not points:
        return ["## Growth\n", *failed]
    spread = 100 * (max(steps) / min(steps) - 1)
    return ["## Growth\n", "B, I, H = %d, %d, %d, forward; from T to T a step's time differs by %.0f %% at most.\n"
            % (*points[0]["shape"][1:], spread), table(header, cells), *failed]


# What a result may have, in the order of the report.
SECTIONS = {
    "rows": rows, "gradients": gradients, "persistent": persistent, "product": product, "tiles": tiles, "cudnn": cudnn,
    "dispatch": dispatch, "barrier": barrier, "downloads": downloads, "growth": growth, "statistics": statistics,
}
