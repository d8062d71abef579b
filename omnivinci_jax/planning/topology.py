"""Devices of machines that are not here, to compile for: TPU slices, and one host of GPUs.

The compilers are needed, the hardware and CUDA are not. That for TPUs is libtpu, `pip install "omnivinci-jax[tpu]"`;
that for GPUs is jax's CUDA plugin of jax's own version V, without what it depends on:
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

GPUS_A_HOST = 8

# libtpu is only asked to compile: it need not own a TPU, and is not to look for the machine that it runs on.
_LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Topology(NamedTuple):
    """name: "v5p:4x4x4"; chip: what it is made of; devices: in jax's order, for compiling alone."""

    name: str
    chip: Chip
    devices: list[jax.Device]  # pyright: ignore[reportInvalidTypeForm]


def get_topology(name: str) -> Topology:
    """The machine "v5p:4x4x4" (chip and shape of a TPU slice) or "h100:8" (GPUs of one host).

    Raises:
        ConfigError: a name that is not one, a shape that does not exist, or a compiler that is not installed.
    """
    kind, _, shape = name.partition(":")
    chip = next((chip for chip in CHIPS if chip.name == kind), None)
    if chip is None or not re.fullmatch(r"\d+(x\d+)*", shape):
        chips = ", ".join(chip.name for chip in CHIPS)
        raise ConfigError(
            f"--topology is {name!r}: write a chip ({chips}) and its shape, v5p:4x4x4 for TPUs, h100:8 for GPUs"
        )
    if chip.torus:
        devices = _tpus(name)
    elif not shape.isdigit() or not 1 <= int(shape) <= GPUS_A_HOST:
        raise ConfigError(f"--topology is {name!r}: GPUs are planned for one host, 1 to {GPUS_A_HOST} of them")
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
        raise ConfigError(
            'TPUs are compiled for by libtpu, which is missing: pip install "omnivinci-jax[tpu]"'
        ) from None


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
            "GPUs are compiled for by jax's CUDA plugin, which is missing: "
            f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}"
        ) from None
    return topology.devices


def target_config(chip: Chip) -> str:
    """XLA's description of a GPU: an H200 is an H100 with another memory."""
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
