"""Plans the rollout of a GRPO step for another machine: what is in memory while answers are sampled.

The program that decodes all answers is compiled; prefill and the encoders, which work on a slice at a time, are not.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from omnivinci_jax.generate.decode_state import new_state
from omnivinci_jax.generate.programs import decode
from omnivinci_jax.generate.weights import decoding_weights
from omnivinci_jax.mesh.rules import replicated
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.rl.grpo import rollout_shape
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.shardings import tree_bytes


@dataclass(frozen=True)
class RolloutMemory:
    """Bytes on one chip during a rollout, beside the state of the run.

    decoder: the engine's copy of the parameters. It is freed before the updates, as are the caches.
    caches: keys and values of `rows` answers, each with its prompt, of `slots` slots.
    temporaries: of decoding; program: its code.
    """

    rows: int
    slots: int
    decoder: int
    caches: int
    temporaries: int
    program: int

    @property
    def needed(self) -> int:
        """Memory beside the state."""
        return self.decoder + self.caches + self.temporaries + self.program


def plan_rollout(
    config: TrainConfig, model: OmniVinci, params: dict[str, Any], mesh: Mesh, options: dict | None
) -> RolloutMemory:
    """Compiles decoding on `mesh`, the mesh in force.

    Args:
        config: of the run.
        model: the module.
        params: shapes of all parameters, with shardings.
        mesh: of the machine.
        options: of the compiler.
    """
    rows, slots = rollout_shape(config)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = -(-rows // shards) * shards

    def outputs(program, *arguments) -> Any:
        """Returns the shapes of a program's results, with the shardings that the compiler chooses."""
        lowered = program.lower(*arguments)
        shardings = lowered.compile(options).output_shardings
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            lowered.out_info,
            shardings,
        )

    weights = outputs(decoding_weights, model, params)
    state = outputs(new_state, config.model.text, rows, slots, model.compute.dtype)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    compiled = decode.lower(model, weights, state, scalar, scalar).compile(options)
    analysis = compiled.memory_analysis()
    assert analysis is not None  # all supported compilers provide it
    # What is not cast is not copied: jax returns the same buffer.
    stored = dict(jax.tree_util.tree_leaves_with_path(params))
    rest = jax.tree_util.tree_leaves_with_path(weights.rest)
    copied = [leaf for path, leaf in rest if leaf.dtype != stored[path].dtype]
    return RolloutMemory(
        rows,
        slots,
        decoder=tree_bytes((weights.layers, copied)),
        caches=tree_bytes(state),
        temporaries=analysis.temp_size_in_bytes,
        program=analysis.generated_code_size_in_bytes,
    )
