"""Trains on the data engine's output in the paper's shares: 12 % omni questions to 3 % omni captions (Appendix C.4).

omnivinci train --config configs/explicit_omni.py:FOLDER --workdir runs/omni --config.tokenizer=DIR

FOLDER is the `--out` of `omnivinci data-engine`. The shares of all other data are in configs/mixture.py.
"""

from etils import epath

from configs.mixture import SHARES
from configs.omnivinci_9b import get_config as published
from omnivinci_jax.settings import DataConfig, Source, to_config_dict


def sources(folder: str) -> tuple[Source, ...]:
    """Returns the questions and captions in a folder, with their shares."""
    files = {"explicit_omni_qa": "questions.jsonl", "explicit_omni_captions": "captions.jsonl"}
    return tuple(
        Source(name, str(epath.Path(folder) / file), "omni", float(SHARES["omni"][name]))
        for name, file in files.items()
    )


def get_config(folder: str = "data/omni"):
    config = published()
    config.data.sources = to_config_dict(DataConfig(sources=sources(folder))).sources
    return config
