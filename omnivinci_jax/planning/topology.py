"""Devices of other machines to compile for: TPU slices, and one host of GPUs.

Planning needs the compilers, but neither the hardware nor CUDA. The TPU compiler is libtpu: `pip install
"omnivinci-jax[tpu]"`. The GPU compiler is jax's CUDA plugin in jax's version V, without its dependencies:
`pip install --no-deps jax-cuda12-plugin==V jax-cuda12-pjrt==V`.
"""

import os
import re
from importlib import resources
from typing import NamedTuple

import jax
from jax.experimental import topologies

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.planning.hardware import CHIPS, Chip

GPUS_PER_HOST = 8

# libtpu only compiles: it must neither lock a TPU nor query the machine that it runs on.
_LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Topology(NamedTuple):
    """name: "v5p:4x4x4"; devices: in jax's order, only for compiling."""

    name: str
    chip: Chip
    devices: list[jax.Device]  # pyright: ignore[reportInvalidTypeForm]


def get_topology(name: str) -> Topology:
    """Returns the machine of a name like "v5p:4x4x4" (chip and shape of a TPU slice) or "h100:8" (GPUs of one host).

    Raises:
        ConfigError: a malformed name, a shape that does not exist, or a missing compiler.
    """
    kind, _, shape = name.partition(":")
    chip = next((chip for chip in CHIPS if chip.name == kind), None)
    if chip is None or not re.fullmatch(r"\d+(x\d+)*", shape):
        chips = ", ".join(chip.name for chip in CHIPS)
        raise ConfigError(
            f"--topology is {name!r}: write a chip ({chips}) and its shape, for example v5p:4x4x4 or h100:8"
        )
    if chip.torus:
        devices = _tpus(name)
    elif not shape.isdigit() or not 1 <= int(shape) <= GPUS_PER_HOST:
        raise ConfigError(f"--topology is {name!r}: GPU plans cover one host, 1 to {GPUS_PER_HOST} GPUs")
    else:
        devices = _gpus(chip, int(shape))
    return Topology(name, chip, devices)


def _tpus(name: str) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology is {name!r}: libtpu does not know it ({_first_line(error)})") from None
    except RuntimeError:
        raise ConfigError('compiling for TPUs needs libtpu: pip install "omnivinci-jax[tpu]"') from None


def _gpus(chip: Chip, count: int) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name=chip.name,
            topology=f"1x1x{count}",
            target_config=target_config(chip),
        )
    except NotImplementedError:
        version = jax.__version__
        raise ConfigError(
            "compiling for GPUs needs jax's CUDA plugin: "
            f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}"
        ) from None
    return topology.devices


def target_config(chip: Chip) -> str:
    """Returns XLA's description of a GPU: an H200 is an H100 with other memory."""
    text = resources.files("omnivinci_jax.planning").joinpath("h100.target_config.txtpb").read_text()
    for field, value in (
        ("device_memory_size", chip.memory),
        ("memory_bandwidth", int(chip.memory_bandwidth)),
        ("device_description_str", f'"{chip.kinds[0]}"'),
    ):
        text = re.sub(rf'({field}: )("[^"]*"|\d+)', rf"\g<1>{value}", text)
    return text


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
