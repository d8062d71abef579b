"""The table of docs/scaling.md: the 9B training step on machines that are not here, by their compilers.

python benchmarks/scaling.py                                                  # everything, hours
python benchmarks/scaling.py --topologies v5p:4x4x4 --tokens 32768 --trained all

Each row compiles the step that trains what the stage `omni` does (towers frozen) or all parameters, with rows of so
many slots, of which 1,024 have three frames and 3,277 a window of sound, and one row to each set of chips that share
its slots: the fewest of --contexts with which the step fits. Nothing else should run meanwhile.
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
# Largest fsdp x context: every width of decoder and towers divides by it.
MOST_SHARING = 64
HEADER = (
    "machine",
    "trained",
    "slots a row",
    "mesh",
    "GiB a chip",
    "of",
    "sent, GB",
    "seconds at least",
    "MFU at most",
)


def row_capacity(slots: int, context: int) -> Capacity:
    """A row of `slots`; its tiles and windows divide over `context` devices."""

    def divided(count: float) -> int:
        return -(-round(count) // context) * context

    return Capacity(rows=1, slots=slots, tiles=divided(slots * 96 / 32_768), windows=divided(slots / 3277), clips=4)


def fitting_plan(topology: str, trained: str, slots: int, contexts: list[int]) -> Plan:
    """The step with the fewest chips to a row that it fits with; raises DoesNotFit where it fits with none."""
    from configs.omnivinci_9b import get_config

    jax.config.update("jax_platforms", "cpu")
    machine, config = get_topology(topology), from_mapping(TrainConfig, get_config())
    # The published decoder reads 32,768 positions; longer rows are asked of one that reads as many as there are slots.
    positions = max(slots, config.model.text.max_position_embeddings)
    text = dataclasses.replace(config.model.text, max_position_embeddings=positions)
    model = dataclasses.replace(config.model, text=text)
    config = dataclasses.replace(config, frozen=TRAINED[trained], model=model)
    for context in sorted(context for context in contexts if context <= len(machine.devices)):
        groups, capacity = len(machine.devices) // context, row_capacity(slots, context)
        data = dataclasses.replace(config.data, groups=groups, capacity=capacity)
        mesh = MeshConfig(data=max(1, len(machine.devices) // MOST_SHARING), context=context)
        try:
            make_mesh(mesh, machine.devices)
        except ConfigError as error:  # one that the torus cannot be
            print(f"{slots:,} slots over {context}: {error}", file=sys.stderr, flush=True)
            continue
        try:
            planned = plan(dataclasses.replace(config, data=data, mesh=mesh), machine)
            planned.check_memory()
            return planned
        except DoesNotFit as error:
            print(f"{slots:,} slots over {context}: {error}", file=sys.stderr, flush=True)
    raise DoesNotFit(f"{topology}: {slots:,} slots fit over none of {contexts} chips")


def describe(topology: str, trained: str, slots: int, contexts: list[int]) -> tuple[str, ...]:
    """The cells of one row."""
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
        f"{planned.least_seconds:.2f}",
        f"{planned.utilization(planned.least_seconds):.0%}",
    )


def main() -> None:
    """Prints the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192, 32_768, 131_072], help="slots of a row")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="chips to a row, to be tried")
    options = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    for topology in options.topologies:
        for trained in options.trained:
            for slots in options.tokens:
                # A process for each: compilers keep what they have once taken.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    cells = process.submit(describe, topology, trained, slots, options.contexts).result()
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
