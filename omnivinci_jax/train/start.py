"""The model that a run starts from: a model directory, or the model of another run."""

from etils import epath

from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.model_dir import check_shapes, stored_params
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.paths import absolute
from omnivinci_jax.settings import TrainConfig, nearest


def find_start(config: TrainConfig, model: OmniVinci) -> epath.Path | None:
    """Returns the model directory that `config.start_from` names, or None if it is empty.

    Raises:
        ConfigError: the settings contradict each other.
        UserError: there is no model, it has other shapes, or it lacks one of `config.start_modules`.
    """
    modules = config.start_modules
    if config.lora.rank and (modules or not config.start_from):
        raise ConfigError(
            f"config.lora.rank is {config.lora.rank}: adapters need a whole model to adapt: "
            "set config.start_from and no config.start_modules"
        )
    if not config.start_from:
        if modules:
            raise ConfigError(f"config.start_modules is {modules}: needs config.start_from to load them from")
        return None
    folder, expected = model_folder(absolute(config.start_from)), abstract_params(model.config)
    for module in modules:
        if module not in expected:
            raise ConfigError(f"config.start_modules: {module!r}: no such module{nearest(module, expected)}")
    stored, expected = (only_modules(tree, modules) for tree in (stored_params(folder), expected))
    check_shapes(stored, expected, folder / "params", expected_by="config.model")
    return folder


def only_modules(params: dict, modules: tuple[str, ...]) -> dict:
    """Returns the top-level `modules` of a tree, or the whole tree if `modules` is empty."""
    return {name: tree for name, tree in params.items() if name in modules} if modules else params


def model_folder(folder: epath.Path) -> epath.Path:
    """Returns the model directory: `folder` itself, or the model in it if it is a work directory.

    Raises:
        UserError: there is no model; the message says what `folder` is instead.
    """
    model = folder / "model" if (folder / "model").is_dir() else folder
    if (model / "params").is_dir():
        return model
    if not folder.is_dir():
        raise UserError(f"config.start_from: {folder}: no such directory")
    if (folder / "adapters").is_dir():
        raise UserError(
            f"config.start_from: {folder}: the run has only adapters; merge them first: "
            f"omnivinci export --run {folder} --out DIR"
        )
    if [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]:
        raise UserError(
            f"config.start_from: {folder}: these are PyTorch files; convert them first: "
            f"python -m conversion.from_torch {folder} DIR"
        )
    raise UserError(f"config.start_from: {folder}: neither a model directory nor a work directory with a model")
