"""The paper's data mixture (Figure 5 and Appendix C.4): image 36 %, sound 21 %, speech 17 %, omni 15 %, video 11 %.

omnivinci train --config configs/mixture.py:FOLDER --workdir runs/omni --config.tokenizer=DIR

As in configs/omnivinci_9b.py, both encoders are frozen (Appendix C.3).

Appendix C.4 counts the conversations of the whole corpus, not of a stage: 8 million image, 2.7 million video, 3.6
million omni, and "speech-text" twice, 5.3 and 4.3 million. By the shares, the 5.3 million must be sound (21 % of 24
million is 5.0) and the 4.3 million speech (17 % is 4.1).

Some questions about images are spoken, as in Section 3.2 and Figure 14, which do not give the share: 10 % is our
choice. `config.data.voice` speaks them; --config.data.sources.image_general.speech_share=0 keeps the questions of that
source as text. FOLDER has a folder of shards for each source, written by `omnivinci shard`; for a JSONL file instead,
set the source's `path`. Overrides use the source's name: --config.data.sources.sound_qa.weight=0 disables it. To add
data sets, add sources and keep the sum of each modality's weights at its share.
"""

from etils import epath

from configs.omnivinci_9b import get_config as published
from omnivinci_jax.settings import DataConfig, Source, to_config_dict

# Shares of the samples in per cent. The paper names the larger parts of each modality; "other" is the rest.
SHARES = {
    "image": {"image_general": 19, "image_knowledge": 8, "image_documents": 7, "image_other": 2},
    "sound": {"sound_qa": 20, "sound_other": 1},
    "speech": {"speech_recognition": 10, "speech_qa": 4, "speech_translation": 2, "speech_other": 1},
    # Explicit learning: text from the data engine about sight and sound together (Section 3.2).
    "omni": {"explicit_omni_qa": 12, "explicit_omni_captions": 3},
    # Implicit learning: questions about videos whose sound helps to answer them (Section 3.2).
    "video": {"implicit_video_qa": 11},
}

SPEECH_SHARES = {"image": 0.1}


def sources(folder: str) -> tuple[Source, ...]:
    """Returns the sources of the mixture, one for each data set in `folder`."""
    return tuple(
        Source(name, str(epath.Path(folder) / name), modality, float(weight), SPEECH_SHARES.get(modality, 0.0))
        for modality, parts in SHARES.items()
        for name, weight in parts.items()
    )


def get_config(folder: str = "data"):
    config = published()
    config.data.sources = to_config_dict(DataConfig(sources=sources(folder))).sources
    return config
