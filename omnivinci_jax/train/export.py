"""`omnivinci export`: the adapters of a run (LoRA), which are saved alone, merged into a model directory."""

import jax
from etils import epath
from jax.sharding import Mesh

from omnivinci_jax import model_dir
from omnivinci_jax.errors import UserError
from omnivinci_jax.mesh.rules import replicated
from omnivinci_jax.models.lora import merge_adapters
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.paths import absolute
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.start import find_start
from omnivinci_jax.train.workdir import read_workdir


def export(workdir: epath.Path, out: epath.Path, mesh: Mesh | None = None) -> None:
    """Writes the model that the run in `workdir` started from, with its best adapters merged, to the new folder `out`.

    Args:
        workdir: of the run.
        out: a model directory to make.
        mesh: shards the model over devices; without one the first has it.

    Raises:
        UserError: no such run, or one without adapters; a model that is not there any more; a folder that exists.
    """
    if out.exists():
        raise UserError(f"{out}: it exists already; nothing was written over")
    config, adapters = read_adapters(workdir)
    model = OmniVinci(config.model)
    start = find_start(config, model)
    assert start is not None  # adapters are trained from a model
    scale = config.lora.alpha / config.lora.rank
    shardings = model_dir.shardings_of(model, mesh)
    if mesh:
        adapters = jax.device_put(adapters, replicated(mesh))
    params = merge_adapters(model_dir.load_params(start, shardings), adapters, scale)
    model_dir.save(out, config.model, params, Tokenizer(absolute(config.tokenizer)))


def read_adapters(workdir: epath.Path) -> tuple[TrainConfig, dict]:
    """The configuration of a run and its best adapters; raises UserError where it has none."""
    config = read_workdir(workdir)
    if not config.lora.rank:
        raise UserError(f"{workdir}: the run trained without adapters (config.lora.rank); its model is {workdir}/model")
    if not (workdir / "adapters").is_dir():
        raise UserError(f"{workdir}: the run has saved no adapters yet; start it again until it ends")
    folder, device = workdir / "adapters", jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return config, model_dir.load_params(folder, jax.tree.map(lambda _: device, model_dir.stored_params(folder)))
