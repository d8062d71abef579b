"""The paper's stages (Section 3, Appendix C.2 and C.3): what trains in each. Their numbers are in configs/stages/.

Each starts from the model of the one before. Stage 0 stands for what the paper starts from, a pretrained language model
and image encoder: at full size a directory made from their files, at the tiny size a stage of training.
"""

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.settings import TrainConfig, nearest

# Names of modules in the parameter tree; learned time embeddings train with the streams that have times.
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
    """`TrainConfig.frozen` of a stage: all modules but those that train, and what never does."""
    return (*TrainConfig().frozen, f"(?!{'|'.join(f'{module}/' for module in STAGES[stage])}).*")


def stage_before(stage: str) -> str:
    """The stage whose model a stage starts from."""
    names = list(STAGES)
    return names[names.index(stage) - 1]


def check_stage(stage: str, stages: dict[str, object]) -> None:
    """Raises ConfigError for a stage that a configuration does not have."""
    if stage not in stages:
        raise ConfigError(f"{stage!r}: no such stage{nearest(stage, stages)}")
