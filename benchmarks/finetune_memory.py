"""Memory per chip that fine-tuning needs, as the compilers for machines that are not attached report it.

python benchmarks/finetune_memory.py                     # each row compiles a training step, which takes minutes
python benchmarks/finetune_memory.py --decoders 0.5b --topologies h100:1

Compiles configs/finetune.py with one group per chip, for full fine-tuning and for LoRA of rank 16. For TPUs this needs
the extra `tpu`, for GPUs the packages that docs/scaling.md names.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax

from omnivinci_jax.planning.hardware import GIB
from omnivinci_jax.planning.plan import DoesNotFit, plan
from omnivinci_jax.planning.topology import get_topology
from omnivinci_jax.settings import LoraConfig

METHODS = {"full": LoraConfig(), "LoRA": LoraConfig(rank=16)}


def main() -> None:
    """Prints a row for each decoder, machine and method."""
    from configs.finetune import finetune
    from configs.omnivinci_9b import DECODERS, model_config

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=["0.5b", "3b", "7b"])
    parser.add_argument("--topologies", nargs="+", default=["h100:1", "h100:8", "v5e:2x4"])
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    print("| decoder | machine | | parameters | optimizer | activations | needed | available |", flush=True)
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for decoder in options.decoders:
        for topology in map(get_topology, options.topologies):
            for method, lora in METHODS.items():
                config = finetune(model_config(decoder))
                data = dataclasses.replace(config.data, groups=len(topology.devices))
                try:
                    memory = plan(dataclasses.replace(config, data=data, lora=lora), topology).memory
                except DoesNotFit:  # TPU compilers raise it; GPU compilers report what the step would need
                    print(f"| {decoder} | {topology.name} | {method} | | | | does not fit | |", flush=True)
                    continue
                parts = (memory.parameters, memory.optimizer, memory.activations, memory.needed, memory.available)
                cells = " | ".join(f"{size / GIB:.1f} GiB" for size in parts)
                print(f"| {decoder} | {topology.name} | {method} | {cells} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
