"""A program that computes the loss and gradient of one real batch on meshes, and writes them to an .npz file.

python -m tests.multidevice.compare TRAIN.jsonl OUT.npz MESH... where a mesh is "data,fsdp,context,tensor" or, with
microbatches, "data,fsdp,context,tensor/2"; "+lora" after it trains adapters of all dense layers.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax import traverse_util

from omnivinci_jax.config import OmniAlignConfig, Qwen2Config
from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.loader import Plan, read_batches
from omnivinci_jax.data.mixture import as_mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.mesh.processes import is_main
from omnivinci_jax.mesh.rules import local_groups, put_batch, replicated
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.initialization import unbox_abstract
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, LoraConfig, MeshConfig, OptimizerConfig
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.state import abstract_initial, abstract_state, split_trainable
from omnivinci_jax.train.step import make_gradient
from omnivinci_jax.train.supervised_loss import SupervisedLoss
from tests.tiny import random_like, tiny_config, tiny_settings, tiny_tokenizer

DATA = DataConfig(groups=8, capacity=Capacity(rows=1, slots=304, tiles=32, windows=8, clips=4), workers=0)
CONFIG = tiny_config(
    text=Qwen2Config(512, 64, 96, 2, 8, 4, max_position_embeddings=512),
    omni_align=OmniAlignConfig(num_layers=1, num_heads=8, learned_scale=True),
)


def main(train: str, out: str, *meshes: str) -> None:
    flags.FLAGS.mark_as_parsed()
    processor = Processor(CONFIG, tiny_tokenizer())
    index = build_index(Jsonl(Path(train)), processor, DATA.capacity, "skip", quiet=True)
    model = OmniVinci(CONFIG, Compute(tower_remat="dots", decoder_remat="full"))
    optimizer = make_optimizer(OptimizerConfig(), 9, CONFIG)
    results = {}
    for name in meshes:
        setting, _, lora = name.partition("+")
        axes, _, microbatches = setting.partition("/")
        adapters = LoraConfig(rank=4 if lora else 0, targets=(".*",))
        config = dataclasses.replace(tiny_settings(), model=CONFIG, lora=adapters)
        mesh = make_mesh(MeshConfig(*map(int, axes.split(","))))
        with on_mesh(mesh):
            _, shardings = abstract_state(model, optimizer, config, mesh)
            drawn = split_trainable(unbox_abstract(random_like(abstract_initial(config))), config)
            trainable, frozen = jax.device_put(drawn, (shardings.trainable, shardings.frozen))
            own = local_groups(DATA.groups, mesh)
            (loaded,) = read_batches(
                index, Plan(as_mixture(index), DATA.capacity, 0), processor, DATA, own, start=0, stop=1
            )
            gradient = make_gradient(SupervisedLoss(model, 0.5), int(microbatches or 1))
            gradient = jax.jit(gradient, out_shardings=replicated(mesh))
            gradients, metrics = gradient(trainable, frozen, put_batch(loaded.batch, DATA.groups, mesh))
            found = traverse_util.flatten_dict(jax.device_get(gradients), sep=".")
            found |= {metric: np.asarray(metrics[metric]) for metric in ("loss", "align_loss")}
        results |= {f"{name.replace('/', '|')}:{leaf}": value for leaf, value in found.items()}
        print(name, float(found["loss"]), float(found["align_loss"]), flush=True)
    if is_main():
        np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
