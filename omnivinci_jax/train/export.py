"""`omnivinci export`: merges the LoRA adapters of a run into a model directory."""

import jax
from etils import epath
from jax.sharding import Mesh

from omnivinci_jax import model_dir
from omnivinci_jax.config_json import quantization_of, read_json
from omnivinci_jax.errors import UserError
from omnivinci_jax.mesh.rules import replicated
from omnivinci_jax.models.lora import merge_adapters
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.paths import absolute
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.start import find_start
from omnivinci_jax.train.untrained import initially_untrained, without_adapted
from omnivinci_jax.train.workdir import read_workdir


def export(workdir: epath.Path, out: epath.Path, mesh: Mesh | None = None) -> None:
    """Merges the best adapters of a run into the model that the run started from.

    Args:
        workdir: work directory of the run.
        out: model directory to create.
        mesh: shards the model; None puts it on the first device.

    Raises:
        UserError: there is no run, or it has no adapters; the start model no longer exists, or is quantized; `out`
            exists.
    """
    if out.exists():
        raise UserError(f"{out}: already exists; nothing was overwritten")
    config, adapters = read_adapters(workdir)
    model = OmniVinci(config.model)
    start = find_start(config, model)
    assert start is not None  # a run with adapters has one
    if quantization_of(read_json(start / "config.json")):
        raise UserError(
            f"{workdir}: the run started from {start}, which is quantized: adapters cannot be merged into it; "
            "train them on the model before quantization"
        )
    scale = config.lora.alpha / config.lora.rank
    shardings = model_dir.shardings_of(model, mesh)
    if mesh:
        adapters = jax.device_put(adapters, replicated(mesh))
    params = merge_adapters(model_dir.load_params(start, shardings), adapters, scale)
    untrained = without_adapted(initially_untrained(config, start), adapters)
    model_dir.save(out, config.model, params, Tokenizer(absolute(config.tokenizer)), untrained)


def read_adapters(workdir: epath.Path) -> tuple[TrainConfig, dict]:
    """Returns the configuration and the best adapters of a run; raises UserError if it has none."""
    config = read_workdir(workdir)
    if not config.lora.rank:
        raise UserError(f"{workdir}: the run trained without adapters (config.lora.rank); its model is {workdir}/model")
    if not (workdir / "adapters").is_dir():
        raise UserError(f"{workdir}: the run has not saved adapters yet; resume it and let it finish")
    folder, device = workdir / "adapters", jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return config, model_dir.load_params(folder, jax.tree.map(lambda _: device, model_dir.stored_params(folder)))
