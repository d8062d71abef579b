"""Navigates a model through the pillar world, told the goal and told a colour drawn at random (docs/downstream.md).

python benchmarks/navigate.py runs/navigation/model --episodes 50
"""

import argparse
import base64
import io

import numpy as np
from PIL import Image

import omnivinci_jax
from omnivinci_jax.downstream.navigation import Frame, mean_score, prompt, run_episode
from omnivinci_jax.downstream.pillar_world import COLOURS, PillarWorld


def data_uri(frame: Frame) -> str:
    """Returns a frame as a PNG in a data: URI."""
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model directory")
    parser.add_argument("--episodes", type=int, default=50)
    arguments = parser.parse_args()
    model = omnivinci_jax.load(arguments.model)

    def agent(instruction: str):
        def answer(frames: list[Frame]) -> str:
            items = prompt([data_uri(frame) for frame in frames], [("text", instruction)])
            content = [{"type": kind, kind: value} for kind, value in items]
            return model.generate([{"role": "user", "content": content}], max_new_tokens=16).text

        return answer

    rng = np.random.default_rng(0)
    scores = {"told": [], "blind": []}
    for index in range(arguments.episodes):
        world = PillarWorld((1, 1, index))
        scores["told"].append(run_episode(world, agent(world.instruction), max_steps=100))
        scores["blind"].append(
            run_episode(world, agent(f"go to the {rng.choice(list(COLOURS))} pillar"), max_steps=100)
        )
    for name, found in scores.items():
        values = ", ".join(f"{measure} {value:.1f}" for measure, value in mean_score(found).items())
        print(f"{name}: {values}; {sum(bool(item.refused) for item in found)} ended by an answer that is no action")


if __name__ == "__main__":
    main()
