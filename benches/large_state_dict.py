"""Measures time and peak memory of `gru convert` for a GRU inside a large state dict.

    python benches/large_state_dict.py target/release/gru [GB]

Writes a .safetensors file of GB gigabytes (default 2) with a GRU of I 64, H 128 in the middle and, if torch is installed,
the same as torch.save writes it in the zip form and in the old form. Converts the GRU of each file seven times and
prints the median wall time of the process and its largest peak memory.
"""

import importlib.util
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time


def shapes(gigabytes):
    tensors = {f"other.{i:04}": [1024, 1024] for i in range(round(gigabytes * 256))}
    gru = {"weight_ih_l0": [384, 64], "weight_hh_l0": [384, 128], "bias_ih_l0": [384], "bias_hh_l0": [384]}
    tensors.update({f"middle.gru.{name}": shape for name, shape in gru.items()})
    return tensors


def write_safetensors(path, tensors):
    header, end = {}, 0
    for name, shape in sorted(tensors.items()):
        size = 4
        for axis in shape:
            size *= axis
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(end // (1 << 20)):
            file.write(bytes(1 << 20))
        file.write(bytes(end % (1 << 20)))


def write_torch(path, tensors, is_zip):
    import torch

    state = {name: torch.zeros(shape) for name, shape in sorted(tensors.items())}
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=is_zip)


def write_zip(path, tensors):
    write_torch(path, tensors, is_zip=True)


def write_old(path, tensors):
    write_torch(path, tensors, is_zip=False)


def run(arguments):
    """Returns the wall time in seconds and the peak memory in MB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, arguments
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main():
    binary, gigabytes = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    writers = {"large.safetensors": write_safetensors}
    if importlib.util.find_spec("torch"):
        writers |= {"large.pt": write_zip, "large_old.pt": write_old}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in writers.items():
            source, target = pathlib.Path(folder) / name, pathlib.Path(folder) / "gru.safetensors"
            # A process of its own: Linux counts the parent's memory to a new process's peak.
            writer = multiprocessing.get_context("spawn").Process(target=write, args=(source, shapes(gigabytes)))
            writer.start()
            writer.join()
            times, peaks = zip(*(run([binary, "convert", source, target]) for _ in range(7)))
            size = source.stat().st_size / 1e9
            print(f"{name}: {size:.2f} GB: {1e3 * statistics.median(times):.0f} ms, peak {max(peaks):.0f} MB")
            source.unlink()


if __name__ == "__main__":
    main()
