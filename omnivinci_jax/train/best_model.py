"""The model of a run with the best validation score, saved as a model directory."""

from etils import epath

from omnivinci_jax import model_dir
from omnivinci_jax.mesh.processes import atomic_directory
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.state import TrainState
from omnivinci_jax.train.untrained import without_trained


class BestModel:
    """The folder with a run's best model or, if only adapters train, its best adapters.

    `untrained` are the modules that no training had touched when the run began.
    """

    def __init__(self, workdir: epath.Path, config: TrainConfig, tokenizer: Tokenizer, untrained: tuple[str, ...]):
        self.folder = workdir / ("adapters" if config.lora.rank else "model")
        self._adapters, self._model, self._tokenizer = bool(config.lora.rank), config.model, tokenizer
        self._untrained = untrained

    def keep(self, state: TrainState) -> None:
        """Saves the model of `state` in place of the previous one; raises UserError if it cannot be written."""
        if self._adapters:
            with atomic_directory(self.folder, replace=True) as part:
                model_dir.save_params(part, state.trainable)
        else:
            untrained = without_trained(self._untrained, state)
            model_dir.save(self.folder, self._model, state.params, self._tokenizer, untrained)

    def load(self, shardings: dict) -> dict:
        """Loads the parameters that are in `shardings`."""
        return model_dir.load_params(self.folder, shardings)
