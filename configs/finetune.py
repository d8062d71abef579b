"""Fine-tunes a model of any size on your own conversations; see docs/finetune.md.

omnivinci train --config configs/finetune.py:MODEL --workdir runs/mine --config.data.train=mine.jsonl

MODEL is a model directory or a work directory. As in the paper's joint training, the encoders are frozen, and
projectors and decoder train. With --config.lora.rank=16, adapters train instead.
"""

from etils import epath

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import read_config
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, OptimizerConfig, TrainConfig, to_config_dict
from omnivinci_jax.train.start import model_folder


def finetune(model: OmniVinciConfig) -> TrainConfig:
    """Returns the settings for a model of this shape."""
    slots = min(4096, model.text.max_position_embeddings)
    return TrainConfig(
        # Published weights read a fixed number of frames of every video; short videos need fewer.
        model=model.replace(frame_sampling="uniform"),
        data=DataConfig(groups=8, capacity=Capacity(rows=1, slots=slots, tiles=64, windows=8, clips=8)),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        frozen=(*TrainConfig().frozen, "vision_tower/.*", "sound_tower/.*", "omni_align/.*"),
    )


def get_config(start: str = ""):
    if not start:
        raise ConfigError("give the model to start from: --config configs/finetune.py:MODEL")
    folder = model_folder(epath.Path(start).expanduser())
    values = to_config_dict(finetune(read_config(folder / "config.json")))
    values.start_from, values.tokenizer = start, str(folder)
    return values
