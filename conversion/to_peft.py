"""Convert a run's LoRA adapters to PEFT's layout, for the published model in PyTorch.

python -m conversion.to_peft RUN DST

PEFT names adapters after the modules of the merged layout: `base_model.model.llm.model.layers.0.self_attn.q_proj`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from etils import epath
from flax import traverse_util
from safetensors.numpy import save_file

from conversion.command import run
from conversion.mapping import HEAD, LINEAR, Tensor, tensors
from omnivinci_jax.errors import UserError
from omnivinci_jax.mesh.processes import atomic_directory
from omnivinci_jax.models.initialization import parameter_shapes
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.export import read_adapters


def to_peft(workdir: Path, destination: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors to the new directory `destination`.

    Raises:
        UserError: `workdir` has no run with adapters; an adapted module is not a linear layer of the published
            model; `destination` exists.
    """
    config, adapters = read_adapters(epath.Path(workdir))
    with atomic_directory(destination, replace=False) as staged:
        part = Path(staged)
        arrays, modules = {}, []
        for tensor, a, b in _adapted(config, adapters, workdir):
            module = tensor.name.removesuffix(".weight")
            modules.append(module)
            arrays[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(a.T)
            arrays[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(b.T[: tensor.shape[0]])
        save_file(arrays, part / "adapter_model.safetensors", metadata={"format": "pt"})
        (part / "adapter_config.json").write_text(json.dumps(_config(config, modules), indent=2) + "\n")


def _adapted(config: TrainConfig, adapters: dict, workdir: Path) -> Iterator[tuple[Tensor, np.ndarray, np.ndarray]]:
    """Yields the published weight of each adapted module with its lora_a and lora_b."""
    shapes = parameter_shapes(config.model)
    published: dict[str, list[Tensor]] = {}
    for tensor in tensors(config.model, shapes):
        published.setdefault(tensor.path, []).append(tensor)
    leaves = traverse_util.flatten_dict(adapters, sep="/")
    for path in sorted({path.rpartition("/")[0] for path in leaves}):
        a, b = (np.asarray(leaves[f"{path}/{name}"]) for name in ("lora_a", "lora_b"))
        for tensor in published.get(f"{path}/kernel", [None]):
            if tensor is None or tensor.transform not in (LINEAR, HEAD):
                raise UserError(f"{workdir}: {path} is not a published linear layer, so PEFT cannot adapt it")
            layer = ... if tensor.index is None else tensor.index
            yield tensor, a[layer], b[layer]


def _config(config: TrainConfig, modules: list[str]) -> dict:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": config.start_from,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def main(arguments: list[str], prog: str = "python -m conversion.to_peft") -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="work directory of a run with adapters")
    parser.add_argument("destination", type=Path, help="directory to create")
    options = parser.parse_args(arguments)
    to_peft(options.run, options.destination)
    print(f"wrote {options.destination}")
    return 0


if __name__ == "__main__":
    run(main)
