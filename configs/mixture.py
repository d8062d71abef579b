"""The paper's data mixture (Figure 5 and Appendix C.4): image 36 %, sound 21 %, speech 17 %, omni 15 %, video 11 %.

omnivinci train --config configs/mixture.py:FOLDER --workdir runs/omni --config.tokenizer=DIR

What trains is what trains in configs/omnivinci_9b.py: both encoders are frozen (Appendix C.3).

Appendix C.4 counts the conversations of the whole corpus, not of a stage: 8 million image, 2.7 million video, 3.6
million omni, and "speech-text" twice, 5.3 and 4.3 million. By the shares, the 5.3 million must be sound (21 % of 24
million is 5.0) and the 4.3 million speech (17 % is 4.1).

Part of the questions about images is spoken, as in Section 3.2 and Figure 14, which do not say how many: the share is
ours. `config.data.voice` says them; --config.data.sources.image_general.speech_share=0 leaves them written.
FOLDER holds a folder of shards for each source, made by `omnivinci shard` (or name JSONL files in `path`). A source is
reached by its name: --config.data.sources.video_qa.weight=0 leaves one out. More data sets are more sources; the
weights of those of one kind then add up to that kind's share.
"""

from etils import epath

from configs.omnivinci_9b import get_config as published
from omnivinci_jax.settings import DataConfig, Source, to_config_dict

# Shares of the samples in per cent. The paper names the larger parts of each kind; what it leaves of one is "other".
SHARES = {
    "image": {"image_general": 19, "image_knowledge": 8, "image_documents": 7, "image_other": 2},
    "sound": {"sound_qa": 20, "sound_other": 1},
    "speech": {"speech_recognition": 10, "speech_qa": 4, "speech_translation": 2, "speech_other": 1},
    # Explicit learning: what the data engine writes about sight and sound together (Section 3.2).
    "omni": {"explicit_omni_qa": 12, "explicit_omni_captions": 3},
    # Implicit learning: questions about videos whose sound is left in, so that it helps to answer them (Section 3.2).
    "video": {"implicit_video_qa": 11},
}

SPEECH_SHARES = {"image": 0.1}


def sources(folder: str) -> tuple[Source, ...]:
    """The mixture of the data sets in a folder."""
    return tuple(
        Source(name, str(epath.Path(folder) / name), modality, float(weight), SPEECH_SHARES.get(modality, 0.0))
        for modality, parts in SHARES.items()
        for name, weight in parts.items()
    )


def get_config(folder: str = "data"):
    config = published()
    config.data.sources = to_config_dict(DataConfig(sources=sources(folder))).sources
    return config
