"""Plans a training step for a machine that is not here: compiles it with that machine's compiler, and reads the result.

    omnivinci plan --config configs/omnivinci_9b.py --topology v5p:4x4x4 --config.data.groups=64

It prints what the step needs of a chip's memory, its FLOPs, what each chip sends along each mesh axis, and how fast the
step can be at most. It ends with 1 where the step does not fit, with 2 where the configuration cannot be used.
"""

import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from omnivinci_jax.errors import UserError
from omnivinci_jax.mesh.mesh import AXES, make_mesh, on_mesh
from omnivinci_jax.mesh.rules import batch_shardings, check_batch
from omnivinci_jax.planning.flops import FlopCounter, Flops, full_work
from omnivinci_jax.planning.hardware import GIB, Chip
from omnivinci_jax.planning.hlo import Traffic, read_traffic
from omnivinci_jax.planning.topology import Topology
from omnivinci_jax.sequence.assemble import check_capacity, empty_group
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.settings import DataConfig, TrainConfig
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.shardings import bytes_per_device
from omnivinci_jax.train.state import TrainState, abstract_state, make_model
from omnivinci_jax.train.step import make_train_step
from omnivinci_jax.train.supervised_loss import SupervisedLoss

# XLA finds the tile sizes of its own matrix kernels by running them; without a GPU it stops at some that cannot be.
COMPILER_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


class DoesNotFit(UserError):
    """A step that needs more memory than a chip has."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    parameters, optimizer: of the state; batch: the rest of the arguments, with padding; activations: the most that is
    held beside them at once.
    outputs: results that do not take the place of an argument; program: the code.
    available: what programs can have.
    """

    parameters: int
    optimizer: int
    batch: int
    activations: int
    outputs: int
    program: int
    available: int

    @property
    def needed(self) -> int:
        """Everything that the step holds at once."""
        return self.parameters + self.optimizer + self.batch + self.activations + self.outputs + self.program


@dataclass(frozen=True)
class Plan:
    """One compiled step.

    mesh: chips along each axis.
    flops, recomputed: of all chips, the groups being full; traffic: what each chip sends.
    compute_seconds: all of them at the chips' peak. axis_seconds: for each set of mesh axes, what it carries at the
    peak of the links that it spans.
    """

    topology: Topology
    mesh: dict[str, int]
    memory: Memory
    flops: Flops
    recomputed: Flops
    traffic: Traffic
    compute_seconds: float
    axis_seconds: dict[tuple[str, ...], float]

    @property
    def least_seconds(self) -> float:
        """A step in which everything overlaps."""
        return max(self.compute_seconds, *self.axis_seconds.values(), 0.0)

    @property
    def most_seconds(self) -> float:
        """A step in which nothing overlaps, still at the peak of everything."""
        return self.compute_seconds + sum(self.axis_seconds.values())

    def check_memory(self) -> None:
        """Raises DoesNotFit where the step needs more than there is."""
        memory = self.memory
        if memory.needed > memory.available:
            raise DoesNotFit(
                f"{self.topology.name}: the step does not fit: it needs {memory.needed / GIB:.2f} GiB a chip, of which "
                f"{memory.activations / GIB:.2f} are activations, and there are {memory.available / GIB:.2f}"
            )

    def utilization(self, seconds: float) -> float:
        """Model FLOPs utilization (MFU) of a step that takes so long."""
        return self.flops.total / math.prod(self.mesh.values()) / self.topology.chip.flops / seconds


def plan(config: TrainConfig, topology: Topology, hlo: Path | None = None) -> Plan:
    """Compiles the training step of `config` for `topology`; takes minutes.

    Args:
        config: of the run.
        topology: the machine.
        hlo: a file to write the compiled program's text to.

    Raises:
        ConfigError: a configuration that does not suit the machine.
        DoesNotFit: the compiler finds no way to keep the step within a chip's memory. (That for GPUs does not ask.)
    """
    check_capacity(config.data.capacity, config.model)
    mesh = make_mesh(config.mesh, topology.devices)
    check_batch(config.data, config.microbatches, mesh)
    work, counter = full_work(config.data), FlopCounter(config)
    flops, recomputed = counter.step(work), counter.recomputed(work)
    state, compiled = _compile(config, mesh, topology)
    text = compiled.as_text()
    assert text is not None  # every compiler here gives it
    if hlo:
        hlo.write_text(text)
    traffic = read_traffic(text, mesh.shape)
    return Plan(
        topology,
        dict(mesh.shape),
        _memory(state, compiled, topology.chip),
        flops,
        recomputed,
        traffic,
        compute_seconds=(flops.total + recomputed.total) / mesh.size / topology.chip.flops,
        axis_seconds={
            axes: sum(sent.values()) / _bandwidth(axes, mesh, topology.chip) for axes, sent in traffic.by_axes().items()
        },
    )


def _compile(config: TrainConfig, mesh: Mesh, topology: Topology) -> tuple[TrainState, jax.stages.Compiled]:
    """The state's shapes with their shardings, and the step compiled for them."""
    model = make_model(config, topology.devices[0].platform)
    optimizer = make_optimizer(config.optimizer, config.steps, config.model)
    # Outside the mesh: what it computes of constants, it computes on this machine.
    shapes, shardings = abstract_state(model, optimizer, config, mesh)
    state = jax.tree.map(_sharded, shapes, shardings)
    step = make_train_step(
        SupervisedLoss(model, config.align_weight), optimizer, shardings, microbatches=config.microbatches
    )
    started = time.monotonic()
    with on_mesh(mesh):
        lowered = step.lower(state, _abstract_batch(config, mesh))
        print(f"{topology.name}: lowered in {time.monotonic() - started:.0f} s, compiling ...", file=sys.stderr)
        started = time.monotonic()
        try:
            compiled = lowered.compile(COMPILER_OPTIONS.get(topology.devices[0].platform))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0].partition(": ")[2]
            raise DoesNotFit(f"{topology.name}: the step does not fit: {reason}") from None
    print(f"{topology.name}: compiled in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return state, compiled


def _abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    group = empty_group(config.model, config.data.capacity)
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(
            (config.data.groups, *array.shape), array.dtype, sharding=sharding
        ),
        group,
        batch_shardings(group, mesh),
    )


def _sharded(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _memory(state: TrainState, compiled: jax.stages.Compiled, chip: Chip) -> Memory:
    analysis = compiled.memory_analysis()
    assert analysis is not None  # every compiler here gives it
    sizes = jax.tree.map(lambda leaf: bytes_per_device(leaf, leaf.sharding), state)
    parameters = sum(jax.tree.leaves((sizes.trainable, sizes.frozen)))
    optimizer = sum(jax.tree.leaves(sizes.opt_state))
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    if chip.torus:
        # The size of all temporaries is more than is ever held: more than a chip has where the compiler is content.
        activations = analysis.peak_memory_in_bytes - analysis.argument_size_in_bytes - outputs
    else:
        activations = analysis.temp_size_in_bytes  # which the peak leaves out
    share = 1.0 if chip.torus else float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        batch=analysis.argument_size_in_bytes - parameters - optimizer,
        activations=activations,
        outputs=outputs,
        program=analysis.generated_code_size_in_bytes,
        available=int(share * chip.memory),
    )


def _bandwidth(axes: tuple[str, ...], mesh: Mesh, chip: Chip) -> float:
    """Bytes/s that a chip can send along mesh axes: of a torus's links those in the directions that they span."""
    if not chip.torus:
        return chip.interconnect
    spanned = set()
    for axis in axes:
        line = mesh.devices[tuple(slice(None) if name == axis else 0 for name in AXES)]
        spanned |= {side for side in range(3) if len({device.coords[side] for device in line}) > 1}
    return chip.interconnect * len(spanned) / chip.torus


def describe(plan: Plan, data: DataConfig) -> str:
    """The plan in words and numbers."""
    capacity, memory = data.capacity, plan.memory
    shape = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.topology.name}: {math.prod(plan.mesh.values())} chips as {shape}",
        f"{data.groups} groups of {capacity.rows} x {capacity.slots:,} slots, {capacity.tiles} tiles, "
        f"{capacity.windows} windows",
        "",
        "memory of a chip, GiB",
        *(
            f"  {name:16}{getattr(memory, name) / GIB:8.2f}"
            for name in ("parameters", "optimizer", "batch", "activations", "outputs", "program", "needed", "available")
        ),
        "",
        "FLOPs of a step",
        *(f"  {part:16}{flops:8.2e}" for part, flops in zip(Flops._fields, plan.flops, strict=True)),
        f"  {'model':16}{plan.flops.total:8.2e}",
        f"  {'recomputed':16}{plan.recomputed.total:8.2e}",
        "",
        "a chip sends in a step, GB",
    ]
    for axes, sent in plan.traffic.by_axes().items():
        largest_first = sorted(sent.items(), key=lambda item: -item[1])
        kinds = ", ".join(f"{opcode} {size / 1e9:.2f}" for opcode, size in largest_first)
        lines.append(f"  {'+'.join(axes):16}{sum(sent.values()) / 1e9:8.2f}  {plan.axis_seconds[axes]:6.3f} s  {kinds}")
    if plan.traffic.unknown_loops:
        lines.append(f"  and more: {plan.traffic.unknown_loops} loops of unknown length are counted as one turn")
    lines += ["", f"{'compute at peak':18}{plan.compute_seconds:8.3f} s"]
    for name, seconds in (("all overlapped", plan.least_seconds), ("none overlapped", plan.most_seconds)):
        lines.append(f"{name:18}{seconds:8.3f} s, {plan.utilization(seconds):.0%} MFU")
    return "\n".join(lines)
