"""transformers' modules load the merged export with strict key checks."""

import numpy as np
from safetensors.torch import load_file

from conversion.from_torch import from_torch
from conversion.to_torch import to_torch
from tests.conversion.checkpoints import make, parameters
from tests.parity.torch_model import Merged
from tests.tiny import tiny_config


def test_strict_load(tmp_path):
    config = tiny_config()
    from_torch(make(tmp_path / "source", "released", "F32", config), tmp_path / "model")
    to_torch(tmp_path / "model", tmp_path / "merged", layout="merged")
    module = Merged(config)
    module.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"), strict=True)
    leaf = parameters(tmp_path / "model")["llm/layers/mlp/up_proj/kernel"]
    weight = module.llm.model.layers[2].mlp.up_proj.weight.detach().numpy()
    assert weight.tobytes() == np.ascontiguousarray(leaf[2].T).tobytes()
