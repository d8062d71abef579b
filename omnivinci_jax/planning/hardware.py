"""Peak compute, memory and bandwidth of each chip, from the vendors' data sheets.

TPU: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, which count both directions of the interconnect, so we halve that.
GPU: NVIDIA's H100 and H200 data sheets for the SXM parts; bfloat16 without sparsity (half of the printed number),
NVLink 900 GB/s for both directions together.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, which is one jax device.

    name: as in `--topology`.
    kinds: its possible values of `jax.Device.device_kind`.
    flops: dense bfloat16 FLOP/s.
    memory: bytes of HBM available to programs.
    memory_bandwidth: of the HBM, bytes/s.
    interconnect: bytes/s that the chip can send over all its links.
    torus: dimensions of its torus (two links per dimension), 0 for links to a switch.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: int
    memory_bandwidth: float
    interconnect: float
    torus: int


# TPU memory: what libtpu 0.0.42 reports as available ("exceeds available HBM (15.75G)").
# GPU memory: what CUDA reports ("total capacity of 79.14 GiB", "of 139.80 GiB" in PyTorch's messages).
CHIPS = (
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, int(15.75 * GIB), 819e9, 400e9 / 2, torus=2),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, int(95.74 * GIB), 2765e9, 1200e9 / 2, torus=3),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, int(31.25 * GIB), 1638e9, 800e9 / 2, torus=2),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, 84_978_434_048, 3352.32e9, 900e9 / 2, torus=0),
    Chip("h200", ("NVIDIA H200",), 989e12, int(139.80 * GIB), 4800e9, 900e9 / 2, torus=0),
)


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a jax `device_kind`; None if it is not in the table, for example a CPU."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
