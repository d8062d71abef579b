"""The omni-modal data engine (Section 3.2, Figure 4); see docs/data_engine.md.

omnivinci data-engine --config configs/data_engine.py --videos FOLDER --out data/omni \\
    --config.vision.url=http://HOST:PORT --config.vision.model=NAME ...

Each role is a server of OpenAI's form. The paper captions with a vision and an audio model, corrects with a text model
and asks questions with a reasoning model; all roles here start at one local server. configs/explicit_omni.py trains on
the result.
"""

from omnivinci_jax.data_engine.settings import EngineConfig, ModelConfig
from omnivinci_jax.settings import to_config_dict

LOCAL = "http://127.0.0.1:8000"


def get_config():
    captioner = ModelConfig(url=LOCAL, max_tokens=512)
    writer = ModelConfig(url=LOCAL, max_tokens=4096, timeout=300.0)
    judge = ModelConfig(url=LOCAL, max_tokens=16)
    config = EngineConfig(vision=captioner, audio=captioner, corrector=writer, questioner=writer, judge=judge)
    return to_config_dict(config)
