"""Peak compute, memory and bandwidth of each chip, from the vendors' data sheets.

TPU numbers are those of docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, which give the interconnect in both directions
together, so half of it here. GPU numbers are those of NVIDIA's H100 and H200 data sheets for the SXM parts: bfloat16
without sparsity (half of what they print), NVLink 900 GB/s in both directions together.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip, which jax shows as one device.

    name: as in `--topology`.
    kinds: what `jax.Device.device_kind` may call it.
    flops: dense bfloat16 FLOP/s.
    memory: bytes of HBM that programs can have.
    memory_bandwidth: of the HBM, bytes/s.
    interconnect: bytes/s that the chip can send, all its links together.
    torus: sides of the torus that its links span (a link in each direction of each), 0 for links to a switch.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: int
    memory_bandwidth: float
    interconnect: float
    torus: int


# A TPU's memory is what libtpu 0.0.42 says that it leaves to a program ("exceeds available HBM (15.75G)").
# A GPU's is what CUDA says there is ("total capacity of 79.14 GiB", "of 139.80 GiB" in PyTorch's messages).
CHIPS = (
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, int(15.75 * GIB), 819e9, 400e9 / 2, torus=2),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, int(95.74 * GIB), 2765e9, 1200e9 / 2, torus=3),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, int(31.25 * GIB), 1638e9, 800e9 / 2, torus=2),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, 84_978_434_048, 3352.32e9, 900e9 / 2, torus=0),
    Chip("h200", ("NVIDIA H200",), 989e12, int(139.80 * GIB), 4800e9, 900e9 / 2, torus=0),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that jax calls `device_kind`; None for one that is not in the table, a CPU for instance."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
