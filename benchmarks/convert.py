"""Converts a random checkpoint from and to PyTorch: measures time relative to `cp`, and peak memory; compares all bits.

python benchmarks/convert.py --folder DIR                  # 8.7e9 parameters in bfloat16, 53 GB of disk
python benchmarks/convert.py --folder DIR --decoder 0.5b

Runs each command in its own process under /usr/bin/time -v. If the benchmark runs as root, it drops the page cache
before each command. Every time includes `sync`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from conversion.layouts import file_name, read_layout
from conversion.mapping import tensors
from conversion.tensor_files import DTYPES, TensorWriter
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import to_json, to_released
from omnivinci_jax.models.initialization import parameter_shapes

CACHES = Path("/proc/sys/vm/drop_caches")


def random_checkpoint(config: OmniVinciConfig, folder: Path, layout: str, dtype: np.dtype) -> int:
    """Writes a checkpoint of random bits in `layout`; returns its size in bytes."""
    shapes = parameter_shapes(config)
    folders: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for tensor in tensors(config, shapes):
        where, name = file_name(tensor.name, layout)
        folders.setdefault(where, []).append((name, tensor.shape))
    rng, total = np.random.default_rng(0), 0
    for where, entries in folders.items():
        writer = TensorWriter(folder / where, [(name, shape, dtype) for name, shape in entries])
        for name, shape in entries:
            size = int(np.prod(shape)) * dtype.itemsize
            bits = rng.integers(0, 2**63, -(-size // 8), np.int64).view(np.uint8)[:size]
            writer.write(name, bits.view(dtype).reshape(shape))
            total += size
        writer.close()
    root = to_json(config)
    for path, values in (to_released(root) if layout == "released" else {"config.json": root}).items():
        (folder / path).write_text(json.dumps(values))
    return total


def different(first: Path, second: Path) -> list[str]:
    """Returns the names of tensors whose bits differ between two checkpoints, in any layouts."""
    a, b = read_layout(first), read_layout(second)
    b = {name: tensor for name, tensor in b.items() if not name.startswith("omnivinci_jax.")}
    names = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        x, y = a[name], b[name]
        if x.shape != y.shape or x.dtype != y.dtype or not np.array_equal(_bits(x.read()), _bits(y.read())):
            names.append(name)
    return names


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def timed(*command: str) -> tuple[float, float]:
    """Runs a command; returns the seconds for it and a `sync`, and its peak resident memory in GB."""
    os.sync()
    if os.access(CACHES, os.W_OK):
        CACHES.write_text("3\n")
    start = time.perf_counter()
    done = subprocess.run(["/usr/bin/time", "-v", *command], stderr=subprocess.PIPE, text=True, check=False)
    os.sync()
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    (kilobytes,) = re.findall(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    return seconds, int(kilobytes) * 1024 / 1e9


def main() -> None:
    """Writes, copies, converts and compares the checkpoint; prints the table."""
    from configs.omnivinci_9b import DECODERS, model_config

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new directory, removed at the end")
    parser.add_argument("--decoder", choices=DECODERS, default="7b")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    source, model, copy, exported = (options.folder / name for name in ("source", "model", "copy", "exported"))
    try:
        size = random_checkpoint(model_config(options.decoder), source, "released", DTYPES["BF16"])
        rows = [("cp -r", *timed("cp", "-r", str(source), str(copy)))]
        shutil.rmtree(copy)
        run = (sys.executable, "-m")
        rows.append(("from_torch", *timed(*run, "conversion.from_torch", str(source), str(model))))
        for layout in ("released", "merged"):
            command = (*run, "conversion.to_torch", str(model), str(exported), "--layout", layout)
            rows.append((f"to_torch {layout}", *timed(*command)))
            names = different(source, exported)
            print(f"{layout}: {len(names)} tensors differ {names[:3] or ''}", flush=True)
            shutil.rmtree(exported)
        cold = "cold" if os.access(CACHES, os.W_OK) else "caches not dropped"
        print(f"\n{size / 1e9:.2f} GB, {os.cpu_count()} cores, {cold}\n")
        print("| command | seconds, with sync | times cp | peak memory, GB |\n|---|---|---|---|")
        for name, seconds, peak in rows:
            print(f"| {name} | {seconds:.1f} | {seconds / rows[0][1]:.2f} | {peak:.2f} |")
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
