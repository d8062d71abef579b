"""A program that samples answers on meshes of all its devices, and writes them as JSON.

python -m tests.multidevice.generate CLIP OUT.json MESH... where a mesh is "data,fsdp,context,tensor".
"""

import json
import sys
from pathlib import Path

from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.settings import MeshConfig
from tests.generate.conftest import tiny_assistant


def main(clip: str, out: str, *meshes: str) -> None:
    found = {}
    for name in meshes:
        assistant = tiny_assistant()
        assistant.engine = Engine(*assistant, make_mesh(MeshConfig(*map(int, name.split(",")))))
        sampling = dict(temperature=1.5, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=5, max_new_tokens=12)
        questions = [[Path(clip), "One?"], "Two?", ["Three?", Path(clip)]]
        answers = [assistant.generate(questions[0], **sampling), *assistant.generate_batch(questions, **sampling)]
        answers += assistant.sample(questions[2], 3, **sampling)
        found[name] = [answer.tokens for answer in answers]
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
