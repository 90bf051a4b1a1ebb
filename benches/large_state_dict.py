"""Measures time and peak memory of `gru convert` for a GRU inside a large state dict.

    python benches/large_state_dict.py target/release/gru [GB]

Writes a .safetensors file of GB gigabytes (default 2) with a GRU of I 64, H 128 in the middle and, if torch is installed,
the same as torch.save writes it in the zip form and in the old form. Converts the GRU of each file seven times and
prints the median wall time of the process and the largest peak memory so far.
"""

import json
import pathlib
import resource
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
    # The pages of zeros are one page of memory until something writes to them.
    state = {name: torch.zeros(shape) for name, shape in sorted(tensors.items())}
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=is_zip)


try:
    import torch
except ImportError:
    torch = None

binary, gigabytes = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
writers = {"large.safetensors": write_safetensors}
if torch:
    writers["large.pt"] = lambda path, tensors: write_torch(path, tensors, is_zip=True)
    writers["large_old.pt"] = lambda path, tensors: write_torch(path, tensors, is_zip=False)
with tempfile.TemporaryDirectory() as folder:
    for name, write in writers.items():
        source, target = pathlib.Path(folder) / name, pathlib.Path(folder) / "gru.safetensors"
        write(source, shapes(gigabytes))
        times = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([binary, "convert", source, target], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        size = source.stat().st_size / 1e9
        print(f"{name}: {size:.2f} GB: {1e3 * statistics.median(times):.0f} ms, peak {peak:.0f} MB")
        source.unlink()
