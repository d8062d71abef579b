"""Where a run starts from: the parameters of another run or of a model directory."""

from etils import epath

from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.model_dir import check_shapes, stored_params
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.paths import absolute
from omnivinci_jax.settings import TrainConfig, nearest


def find_start(config: TrainConfig, model: OmniVinci) -> epath.Path | None:
    """The model directory that `config.start_from` names, None where it names none.

    Raises:
        UserError: no model is there, or one of another shape or without a module that is to be taken.
    """
    modules = config.start_modules
    if config.lora.rank and (modules or not config.start_from):
        raise ConfigError(
            f"config.lora.rank is {config.lora.rank}: adapters need config.start_from, a whole model to adapt"
        )
    if not config.start_from:
        if modules:
            raise ConfigError(f"config.start_modules is {modules}: there is no config.start_from to take them from")
        return None
    folder, expected = model_folder(absolute(config.start_from)), abstract_params(model.config)
    for module in modules:
        if module not in expected:
            raise ConfigError(f"config.start_modules: {module!r}: no such module{nearest(module, expected)}")
    stored, expected = (only_modules(tree, modules) for tree in (stored_params(folder), expected))
    check_shapes(stored, expected, folder / "params", expected_by="config.model")
    return folder


def only_modules(params: dict, modules: tuple[str, ...]) -> dict:
    """The top-level modules of a tree that are named, all of them where none is."""
    return {name: tree for name, tree in params.items() if name in modules} if modules else params


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
