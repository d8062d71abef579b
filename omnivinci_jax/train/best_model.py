"""The best model of a run, by its validation score, as a model directory."""

from etils import epath

from omnivinci_jax import model_dir
from omnivinci_jax.mesh.processes import atomic_directory
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.state import TrainState


class BestModel:
    """Where a run keeps its best model, or, if only adapters train, the adapters."""

    def __init__(self, workdir: epath.Path, config: TrainConfig, tokenizer: Tokenizer):
        self.folder = workdir / ("adapters" if config.lora.rank else "model")
        self._adapters, self._model, self._tokenizer = bool(config.lora.rank), config.model, tokenizer

    def keep(self, state: TrainState) -> None:
        """Replaces the directory when the new one is whole. Raises UserError where it cannot be written."""
        if self._adapters:
            with atomic_directory(self.folder, replace=True) as part:
                model_dir.save_params(part, state.trainable)
        else:
            model_dir.save(self.folder, self._model, state.params, self._tokenizer)

    def load(self, shardings: dict) -> dict:
        """The parameters that `shardings` has."""
        return model_dir.load_params(self.folder, shardings)
