"""The modules that train in each of the paper's stages (Section 3, Appendix C.2 and C.3).

configs/stages/ has the other settings. Each stage starts from the model of the previous one. Stage 0 replaces the
pretrained language model and image encoder that the paper starts from: at full size it is a directory made from their
files, at the tiny size it is a training stage.
"""

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.settings import TrainConfig, nearest

# Names of modules in the parameter tree. Learned time embeddings train with their stream.
STAGES: dict[str, tuple[str, ...]] = {
    "stage_0": ("vision_tower", "llm"),
    "vision_1": ("mm_projector",),
    "vision_2": ("vision_tower", "mm_projector"),
    "vision_3": ("mm_projector", "llm"),
    "vision_4": ("vision_tower", "mm_projector", "llm"),
    "vision_5": ("vision_tower", "mm_projector", "video_time", "llm"),
    "audio_1": ("sound_tower", "sound_mm_projector", "sound_time"),
    "audio_2": ("sound_tower", "sound_mm_projector", "sound_time", "llm"),
    "omni": ("mm_projector", "sound_mm_projector", "video_time", "sound_time", "omni_align", "llm"),
}


def frozen_in(stage: str) -> tuple[str, ...]:
    """Returns `TrainConfig.frozen` for a stage: all modules that it does not train, and parameters that never train."""
    return (*TrainConfig().frozen, f"(?!{'|'.join(f'{module}/' for module in STAGES[stage])}).*")


def stage_before(stage: str) -> str:
    """Returns the stage whose model a stage starts from."""
    names = list(STAGES)
    return names[names.index(stage) - 1]


def check_stage(stage: str, stages: dict[str, object]) -> None:
    """Raises ConfigError if `stages` does not have the stage."""
    if stage not in stages:
        raise ConfigError(f"{stage!r}: no such stage{nearest(stage, stages)}")
