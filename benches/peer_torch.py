"""Times PyTorch's GRU on the CPU and with cuDNN, for against_peers.py and gpu.py.

As a program it is gpu.py's worker, a separate process that may die. It reads one JSON request per line on stdin and writes
one answer per line on stdout. {"shape": [T, B, I, H], "mode": "forward" or "train", "precision": "fp32", "tf32" or
"fp16"} gives median_ms, min_ms and repeats; without a precision it is fp32. {"peak": N} gives the GFLOP/s of a product of two N × N matrices, in fp32; a failure gives error.

torch is imported inside the functions, because a program that imports this module may not have it.
"""

import json
import statistics
import sys
import time


def gru_once(mode, shape, device="cpu", dtype=None):
    """Returns a function that runs torch.nn.GRU once, with x and weights on the device: forward under inference_mode,
    forward and backward of the sum of y, including the gradient of x, or forward from the last state (step)."""
    import torch

    steps, batch, inputs, hidden = shape
    torch.manual_seed(0)
    gru = torch.nn.GRU(inputs, hidden).to(device, dtype)
    x = torch.randn(steps, batch, inputs, device=device, dtype=dtype, requires_grad=mode == "train")

    def forward():
        with torch.inference_mode():
            gru(x)

    def train():
        gru.zero_grad(set_to_none=True)
        x.grad = None
        gru(x)[0].sum().backward()

    state = [None]

    def step():
        with torch.inference_mode():
            state[0] = gru(x, state[0])[1]

    return {"forward": forward, "train": train, "step": step}[mode]


def cuda_times(once):
    """Returns the ms of each run, by CUDA events: 20 runs, or fewer if they take more than 3 s."""
    import torch

    for _ in range(3):
        once()
    torch.cuda.synchronize()
    times, start = [], time.monotonic()
    while len(times) < 20 and (len(times) < 3 or time.monotonic() - start < 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        once()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def allow_tf32(allowed):
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def cudnn_row(shape, mode, precision="fp32"):
    import torch

    dtype = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}[precision]
    allow_tf32(precision == "tf32")
    try:
        times = cuda_times(gru_once(mode, shape, "cuda", dtype))
    finally:
        allow_tf32(False)
    return {"median_ms": statistics.median(times), "min_ms": min(times), "repeats": len(times)}


def cuda_peak(size):
    import torch

    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    best = min(cuda_times(lambda: torch.mm(a, b)))
    return {"size": size, "gflops": 2 * size**3 / best / 1e6}


def say(answer):
    print(json.dumps(answer), flush=True)


def main():
    try:
        import torch

        if not torch.cuda.is_available():
            return say({"error": "no torch with CUDA here: torch sees no CUDA device"})
        allow_tf32(False)
        say({"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
             "name": torch.cuda.get_device_name(0)})
    except Exception as error:
        return say({"error": f"no torch with CUDA here: {error}".splitlines()[0]})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(cuda_peak(request["peak"]) if "peak" in request else cudnn_row(**request))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}".splitlines()[0], "alive": True})
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
