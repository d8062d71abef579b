"""Where a run starts from: the parameters of another run or of a model directory."""

from etils import epath

from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.model_dir import abstract_params, check_shapes, stored_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.paths import absolute
from omnivinci_jax.settings import TrainConfig


def find_start(config: TrainConfig, model: OmniVinci) -> epath.Path | None:
    """The model directory that `config.start_from` names, None where it names none.

    Raises:
        UserError: no model is there, or one of another shape.
    """
    if not config.start_from:
        if config.lora.rank:
            raise ConfigError(
                f"config.lora.rank is {config.lora.rank}: adapters need config.start_from, a model to adapt"
            )
        return None
    folder = model_folder(absolute(config.start_from))
    check_shapes(stored_params(folder), abstract_params(model), folder / "params", asking="config.model")
    return folder


def model_folder(folder: epath.Path) -> epath.Path:
    """`folder` itself where it is a model directory, or the model of the run whose directory it is.

    Raises:
        UserError: what is there instead.
    """
    model = folder / "model" if (folder / "model").is_dir() else folder
    if (model / "params").is_dir():
        return model
    if not folder.is_dir():
        raise UserError(f"config.start_from: {folder}: no such directory")
    if (folder / "adapters").is_dir():
        raise UserError(
            f"config.start_from: {folder}: the run has adapters alone; merge them first: "
            f"omnivinci export --run {folder} --out DIR"
        )
    if [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]:
        raise UserError(
            f"config.start_from: {folder}: these are PyTorch files; convert them first: "
            f"python -m conversion.from_torch {folder} DIR"
        )
    raise UserError(f"config.start_from: {folder}: neither a model directory nor the directory of a run with a model")
