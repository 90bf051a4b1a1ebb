"""PyTorch's GRU, as against_peers.py and gpu.py both time it: on the CPU, and by cuDNN.

Run as a program it is gpu.py's worker, a process of its own that may die: a request a line of JSON on stdin, an
answer a line on stdout. {"shape": [T, B, I, H], "mode": "forward" or "train"} is answered with median_ms, min_ms
and repeats, {"peak": N} with the GFLOP/s of a product of N² matrices, what fails with error.

torch is imported where it is used: whoever imports this module may lack it.
"""

import json
import statistics
import sys
import time


def gru_once(mode, shape, device="cpu"):
    """A run of torch.nn.GRU, to be called over and over, its x and weights on the device: forward under
    inference_mode, or forward and the backward of y's sum, with the gradient of x as here."""
    import torch

    steps, batch, inputs, hidden = shape
    torch.manual_seed(0)
    gru = torch.nn.GRU(inputs, hidden).to(device)
    x = torch.randn(steps, batch, inputs, device=device, requires_grad=mode == "train")

    def forward():
        with torch.inference_mode():
            gru(x)

    def train():
        gru.zero_grad(set_to_none=True)
        x.grad = None
        gru(x)[0].sum().backward()

    return {"forward": forward, "train": train}[mode]


def cuda_times(once):
    """ms of each of up to 20 runs, or as many as take 3 s, by CUDA events."""
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


def cudnn_row(shape, mode):
    times = cuda_times(gru_once(mode, shape, "cuda"))
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
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
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
