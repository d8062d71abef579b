"""Plans a training step for another machine: compiles it with that machine's compiler and reads the result.

    omnivinci plan --config configs/omnivinci_9b.py --topology v5p:4x4x4 --config.data.groups=64
    omnivinci plan --config configs/grpo_9b.py --topology v5p:4x4x4

Prints the step's memory per chip, its FLOPs, the bytes that a chip sends along each mesh axis, and bounds of the step
time; for GRPO, those of one update, and the memory of the rollout. Exits with 1 if the step does not fit, and with 2 if
the configuration is invalid.
"""

import math
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from omnivinci_jax.errors import UserError
from omnivinci_jax.mesh.mesh import AXES, make_mesh, on_mesh
from omnivinci_jax.mesh.rules import batch_shardings, check_batch
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.planning.flops import FlopCounter, Flops, full_work
from omnivinci_jax.planning.hardware import GIB, Chip
from omnivinci_jax.planning.hlo import Traffic, read_traffic
from omnivinci_jax.planning.rollout import RolloutMemory, plan_rollout
from omnivinci_jax.planning.topology import Topology
from omnivinci_jax.rl.encoders import encoded_media
from omnivinci_jax.rl.loss import AnswerBatch, GRPOLoss
from omnivinci_jax.sequence.assemble import EmptyMedia, check_capacity, empty_group
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.settings import DataConfig, TrainConfig
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.shardings import tree_bytes
from omnivinci_jax.train.state import TrainState, abstract_state, cast_frozen, make_model
from omnivinci_jax.train.step import make_train_step
from omnivinci_jax.train.supervised_loss import SupervisedLoss

# XLA tunes its Triton matrix kernels by running them; without a GPU it fails on invalid tile sizes.
COMPILER_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


class DoesNotFit(UserError):
    """A step that needs more memory than a chip has."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    parameters, optimizer: the state; reference: the copy of the initial parameters in a GRPO run.
    batch: the other arguments, with padding; activations: peak of the temporaries.
    outputs: results that do not reuse an argument's buffer; program: the code.
    available: memory for programs.
    """

    parameters: int
    optimizer: int
    reference: int
    batch: int
    activations: int
    outputs: int
    program: int
    available: int

    @property
    def needed(self) -> int:
        """Peak memory of the step."""
        return self.kept + self.activations + self.outputs + self.program

    @property
    def kept(self) -> int:
        """Memory between steps."""
        return self.parameters + self.optimizer + self.reference + self.batch


@dataclass(frozen=True)
class Plan:
    """One compiled step.

    mesh: chips along each axis. rollout: beside `memory.kept`, in a GRPO run.
    flops, recomputed: over all chips, with full groups; traffic: of each chip.
    compute_seconds: FLOPs at the chips' peak. axis_seconds: traffic of each set of mesh axes at the peak of its links.
    """

    topology: Topology
    mesh: dict[str, int]
    memory: Memory
    rollout: RolloutMemory | None
    flops: Flops
    recomputed: Flops
    traffic: Traffic
    compute_seconds: float
    axis_seconds: dict[tuple[str, ...], float]

    @property
    def overlapped_seconds(self) -> float:
        """Step time if compute and all traffic overlap."""
        return max(self.compute_seconds, *self.axis_seconds.values(), 0.0)

    @property
    def serial_seconds(self) -> float:
        """Step time if nothing overlaps, everything at its peak rate."""
        return self.compute_seconds + sum(self.axis_seconds.values())

    def check_memory(self) -> None:
        """Raises DoesNotFit if the step needs more memory than is available."""
        memory = self.memory
        if memory.needed > memory.available:
            raise DoesNotFit(
                f"{self.topology.name}: the step does not fit: it needs {memory.needed / GIB:.2f} GiB per chip "
                f"({memory.activations / GIB:.2f} of them activations), and {memory.available / GIB:.2f} are available"
            )
        if self.rollout and memory.kept + self.rollout.needed > memory.available:
            raise DoesNotFit(
                f"{self.topology.name}: the rollout does not fit: it needs "
                f"{(memory.kept + self.rollout.needed) / GIB:.2f} GiB per chip ({self.rollout.caches / GIB:.2f} of "
                f"them caches), and {memory.available / GIB:.2f} are available; lower config.grpo.rows"
            )

    def utilization(self, seconds: float) -> float:
        """Model FLOPs utilization (MFU) of a step that takes `seconds`."""
        return self.flops.total / math.prod(self.mesh.values()) / self.topology.chip.flops / seconds


def plan(config: TrainConfig, topology: Topology, hlo: Path | None = None) -> Plan:
    """Compiles the training step of `config` for `topology`; takes minutes.

    Args:
        config: of the run.
        topology: the machine.
        hlo: file for the compiled program's text.

    Raises:
        ConfigError: a configuration that does not suit the machine.
        DoesNotFit: the compiler cannot fit the step into a chip's memory (the GPU compiler does not check).
    """
    check_capacity(config.data.capacity, config.model)
    mesh = make_mesh(config.mesh, topology.devices)
    check_batch(config.data, config.microbatches, mesh)
    work, counter = full_work(config.data), FlopCounter(config)
    flops, recomputed = counter.step(work), counter.recomputed(work)
    model = make_model(config, topology.devices[0].platform)
    state, compiled = _compile(config, model, mesh, topology)
    text = compiled.as_text()
    assert text is not None  # all supported compilers provide it
    if hlo:
        hlo.write_text(text)
    traffic = read_traffic(text, mesh.shape)
    rollout, reference = None, 0
    if config.objective == "grpo":
        with on_mesh(mesh):
            rollout = plan_rollout(config, model, state.params, mesh, _compiler_options(topology))
        if config.grpo.beta and not config.lora.rank:
            copy = jax.eval_shape(partial(cast_frozen, model), state.trainable)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, state.trainable)
            reference = tree_bytes(jax.tree.map(_with_sharding, copy, shardings))
    return Plan(
        topology,
        dict(mesh.shape),
        _memory(state, reference, compiled, topology.chip),
        rollout,
        flops,
        recomputed,
        traffic,
        compute_seconds=(flops.total + recomputed.total) / mesh.size / topology.chip.flops,
        axis_seconds={
            axes: sum(sent.values()) / _bandwidth(axes, mesh, topology.chip) for axes, sent in traffic.by_axes().items()
        },
    )


def _compile(
    config: TrainConfig, model: OmniVinci, mesh: Mesh, topology: Topology
) -> tuple[TrainState, jax.stages.Compiled]:
    """Returns the abstract state with shardings, and the step compiled for it."""
    optimizer = make_optimizer(config.optimizer, config.steps, config.model)
    # Outside the mesh, because it computes constants on this machine.
    shapes, shardings = abstract_state(model, optimizer, config, mesh)
    state = jax.tree.map(_with_sharding, shapes, shardings)
    grpo = config.grpo
    if config.objective == "grpo":
        batch = _abstract_batch(config, mesh, encoded_media(model, state.trainable))
        loss_fn, at_slots = GRPOLoss(model, grpo.epsilon, grpo.beta, grpo.temperature), batch.loss_weights
        old, reference = (at_slots if needed else None for needed in (grpo.updates > 1, grpo.beta))
        batch = AnswerBatch(batch, at_slots, at_slots, old, reference)
    else:
        batch, loss_fn = _abstract_batch(config, mesh), SupervisedLoss(model, config.align_weight)
    step = make_train_step(loss_fn, optimizer, shardings, microbatches=config.microbatches)
    started = time.monotonic()
    with on_mesh(mesh):
        lowered = step.lower(state, batch)
        print(f"{topology.name}: lowered in {time.monotonic() - started:.0f} s, compiling ...", file=sys.stderr)
        started = time.monotonic()
        try:
            compiled = lowered.compile(_compiler_options(topology))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0].partition(": ")[2]
            raise DoesNotFit(f"{topology.name}: the step does not fit: {reason}") from None
    print(f"{topology.name}: compiled in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return state, compiled


def _abstract_batch(config: TrainConfig, mesh: Mesh, media: EmptyMedia | None = None) -> Batch:
    group = empty_group(config.model, config.data.capacity, media)
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(
            (config.data.groups, *array.shape), array.dtype, sharding=sharding
        ),
        group,
        batch_shardings(group, mesh),
    )


def _compiler_options(topology: Topology) -> dict | None:
    return COMPILER_OPTIONS.get(topology.devices[0].platform)


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _memory(state: TrainState, reference: int, compiled: jax.stages.Compiled, chip: Chip) -> Memory:
    analysis = compiled.memory_analysis()
    assert analysis is not None  # all supported compilers provide it
    parameters, optimizer = (tree_bytes(tree) for tree in ((state.trainable, state.frozen), state.opt_state))
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    if chip.torus:
        # The total of all temporaries exceeds the peak: it can exceed the chip's memory in a step that fits.
        activations = analysis.peak_memory_in_bytes - analysis.argument_size_in_bytes - outputs
    else:
        activations = analysis.temp_size_in_bytes  # the GPU's peak does not include them
    share = 1.0 if chip.torus else float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        reference=reference,
        batch=analysis.argument_size_in_bytes - parameters - optimizer,
        activations=activations,
        outputs=outputs,
        program=analysis.generated_code_size_in_bytes,
        available=int(share * chip.memory),
    )


def _bandwidth(axes: tuple[str, ...], mesh: Mesh, chip: Chip) -> float:
    """Returns the bytes/s that a chip can send along mesh axes; on a torus, over links in the dimensions they span."""
    if not chip.torus:
        return chip.interconnect
    spanned = set()
    for axis in axes:
        devices = mesh.devices[tuple(slice(None) if name == axis else 0 for name in AXES)]
        spanned |= {side for side in range(3) if len({device.coords[side] for device in devices}) > 1}
    return chip.interconnect * len(spanned) / chip.torus


_KEPT, _STEP = ("parameters", "optimizer", "reference", "batch"), ("activations", "outputs", "program")
_ROLLOUT = ("decoder", "caches", "temporaries", "program")


def _table(sizes: dict[str, int]) -> list[str]:
    return [f"  {name:16}{size / GIB:8.2f}" for name, size in sizes.items() if size or name != "reference"]


def _describe_rollout(memory: Memory, rollout: RolloutMemory) -> list[str]:
    sizes = {name: getattr(memory, name) for name in _KEPT} | {name: getattr(rollout, name) for name in _ROLLOUT}
    sizes |= {"needed": memory.kept + rollout.needed, "available": memory.available}
    return [f"memory per chip in a rollout, {rollout.rows} answers at once, GiB", *_table(sizes), ""]


def describe(plan: Plan, data: DataConfig) -> str:
    """Formats the plan as text."""
    capacity, memory = data.capacity, plan.memory
    shape = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.topology.name}: {math.prod(plan.mesh.values())} chips as {shape}",
        f"{data.groups} groups of {capacity.rows} x {capacity.slots:,} slots, {capacity.tiles} tiles, "
        f"{capacity.windows} windows",
        "",
        "memory per chip, GiB",
        *_table({name: getattr(memory, name) for name in (*_KEPT, *_STEP, "needed", "available")}),
        "",
        *(_describe_rollout(memory, plan.rollout) if plan.rollout else ()),
        "FLOPs per step",
        *(f"  {part:16}{flops:8.2e}" for part, flops in zip(Flops._fields, plan.flops, strict=True)),
        f"  {'model':16}{plan.flops.total:8.2e}",
        f"  {'recomputed':16}{plan.recomputed.total:8.2e}",
        "",
        "sent per chip and step, GB",
    ]
    for axes, sent in plan.traffic.by_axes().items():
        largest_first = sorted(sent.items(), key=lambda item: -item[1])
        kinds = ", ".join(f"{opcode} {size / 1e9:.2f}" for opcode, size in largest_first)
        lines.append(f"  {'+'.join(axes):16}{sum(sent.values()) / 1e9:8.2f}  {plan.axis_seconds[axes]:6.3f} s  {kinds}")
    if plan.traffic.unknown_loops:
        lines.append(f"  and more: {plan.traffic.unknown_loops} loops of unknown length are counted once")
    lines += ["", f"{'compute at peak':18}{plan.compute_seconds:8.3f} s"]
    for name, seconds in (("all overlapped", plan.overlapped_seconds), ("none overlapped", plan.serial_seconds)):
        lines.append(f"{name:18}{seconds:8.3f} s, {plan.utilization(seconds):.0%} MFU")
    return "\n".join(lines)
