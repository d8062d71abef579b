"""Prints the table of docs/scaling.md: the 9B training step, compiled for machines that are not attached.

python benchmarks/scaling.py                                                  # everything; takes hours
python benchmarks/scaling.py --topologies v5p:4x4x4 --tokens 32768 --trained all

Each line of the table compiles a step that trains the parameters of the stage `omni` (towers frozen) or all parameters.
A row has three frames per 1,024 slots and one window of sound per 3,277 slots. Its slots are sharded over the smallest
number of chips in --contexts with which the step fits; the batch has one row for each such set of chips. Run nothing
else meanwhile.
"""

import argparse
import dataclasses
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import jax

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.planning.hardware import GIB
from omnivinci_jax.planning.plan import DoesNotFit, Plan, plan
from omnivinci_jax.planning.topology import get_topology
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import MeshConfig, TrainConfig, from_mapping
from omnivinci_jax.train.stages import frozen_in

TOPOLOGIES = ("v5e:8x8", "v5e:16x16", "v6e:8x8", "v5p:4x4x4", "v5p:8x8x8", "h100:8", "h200:8")
TRAINED = {"omni": frozen_in("omni"), "all": TrainConfig().frozen}
# All widths of decoder and towers are multiples of this.
MAX_FSDP_X_CONTEXT = 64
HEADER = (
    "machine",
    "trained",
    "slots per row",
    "mesh",
    "GiB per chip",
    "available",
    "sent, GB",
    "seconds (min)",
    "MFU (max)",
)


def row_capacity(slots: int, context: int) -> Capacity:
    """Returns the capacity of one row of `slots`; tiles and windows are multiples of `context`."""

    def round_up(count: float) -> int:
        return -(-round(count) // context) * context

    return Capacity(rows=1, slots=slots, tiles=round_up(slots * 96 / 32_768), windows=round_up(slots / 3277), clips=4)


def fitting_plan(topology: str, trained: str, slots: int, contexts: list[int]) -> Plan:
    """Returns the plan with the smallest context that fits; raises DoesNotFit if none does."""
    from configs.omnivinci_9b import get_config

    jax.config.update("jax_platforms", "cpu")
    machine, config = get_topology(topology), from_mapping(TrainConfig, get_config())
    # The published decoder reads 32,768 positions; longer rows need a higher limit.
    positions = max(slots, config.model.text.max_position_embeddings)
    text = dataclasses.replace(config.model.text, max_position_embeddings=positions)
    model = dataclasses.replace(config.model, text=text)
    config = dataclasses.replace(config, frozen=TRAINED[trained], model=model)
    for context in sorted(context for context in contexts if context <= len(machine.devices)):
        groups, capacity = len(machine.devices) // context, row_capacity(slots, context)
        data = dataclasses.replace(config.data, groups=groups, capacity=capacity)
        mesh = MeshConfig(data=max(1, len(machine.devices) // MAX_FSDP_X_CONTEXT), context=context)
        try:
            make_mesh(mesh, machine.devices)
        except ConfigError as error:  # impossible on this torus
            print(f"{slots:,} slots over {context}: {error}", file=sys.stderr, flush=True)
            continue
        try:
            planned = plan(dataclasses.replace(config, data=data, mesh=mesh), machine)
            planned.check_memory()
            return planned
        except DoesNotFit as error:
            print(f"{slots:,} slots over {context}: {error}", file=sys.stderr, flush=True)
    raise DoesNotFit(f"{topology}: {slots:,} slots do not fit for any context of {contexts}")


def describe(topology: str, trained: str, slots: int, contexts: list[int]) -> tuple[str, ...]:
    """Returns the cells of one line of the table."""
    try:
        planned = fitting_plan(topology, trained, slots, contexts)
    except DoesNotFit:
        return topology, trained, f"{slots:,}", "does not fit", *[""] * 5
    memory = planned.memory
    mesh = " x ".join(f"{axis} {size}" for axis, size in planned.mesh.items() if size > 1)
    sent = sum(sum(kinds.values()) for kinds in planned.traffic.by_axes().values())
    return (
        topology,
        trained,
        f"{slots:,}",
        mesh,
        f"{memory.needed / GIB:.1f}",
        f"{memory.available / GIB:.1f}",
        f"{sent / 1e9:.1f}",
        f"{planned.overlapped_seconds:.2f}",
        f"{planned.utilization(planned.overlapped_seconds):.0%}",
    )


def main() -> None:
    """Prints the table line by line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192, 32_768, 131_072], help="slots per row")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="chips per row to try")
    options = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    for topology in options.topologies:
        for trained in options.trained:
            for slots in options.tokens:
                # Each line gets a new process, because compilers do not release their memory.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    cells = process.submit(describe, topology, trained, slots, options.contexts).result()
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
