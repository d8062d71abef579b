"""Requests of all kinds that join and leave a running batch; also runs in a separate process, on a mesh.

python -m tests.generate.continuous AV_WORLD MESH where a mesh is "data,fsdp,context,tensor".
"""

import sys
from pathlib import Path

import jax
import numpy as np

from omnivinci_jax.generate.assistant import Assistant, conversation_of
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Request, Sampling
from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.settings import MeshConfig
from tests.generate.conftest import tiny_assistant

COUNT = 50


def draw_requests(engine: Engine, av_world: Path, seed: int = 0) -> list[Request]:
    """Draws requests of different lengths, media and sampling; some share files or the whole prompt."""
    rng, requests = np.random.default_rng(seed), []
    clips, images, sounds = (
        sorted((av_world / folder).glob(pattern))[:3]
        for folder, pattern in (("clips", "train*"), ("images", "*"), ("sounds", "*"))
    )
    while len(requests) < COUNT:
        media = [Path(rng.choice(files)) for files in (clips, images, sounds) if rng.random() < 0.4]
        text = f"Question {rng.integers(4)}: " + "word " * int(rng.choice([1, 8, 60, 250]))
        prompt = engine.prompt(conversation_of([*media, text]))
        greedy = rng.random() < 0.4
        sampling = Sampling(
            temperature=0.0 if greedy else float(rng.uniform(0.5, 1.5)),
            top_k=int(rng.choice([0, 5, 40])),
            top_p=float(rng.choice([1.0, 0.9])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
            seed=int(rng.integers(100)),
            max_new_tokens=int(rng.integers(1, 40)),
        )
        requests += [Request(prompt, sampling, sample) for sample in range(rng.choice([1, 1, 3]))]
    return requests[:COUNT]


def answer_alone(engine: Engine, requests: list[Request]) -> list[list[int]]:
    """Returns each request's tokens when nothing else runs."""
    answers = []
    for request in requests:
        alone = Request(request.prompt, request.sampling, request.sample)
        for _ in engine.run([alone]):
            pass
        answers.append(alone.tokens)
    return answers


def answer_together(engine: Engine, requests: list[Request], seed: int = 1) -> list[list[int]]:
    """Returns the requests' tokens when they join at random times, while others run and some are cancelled."""
    rng, waiting = np.random.default_rng(seed), list(requests)
    cancelled: list[Request] = []
    while waiting or not engine.scheduler.idle:
        while waiting and rng.random() < 0.4:
            engine.submit(waiting.pop(0))
            if rng.random() < 0.2:
                cancelled.append(Request(requests[0].prompt, Sampling(max_new_tokens=40)))
                engine.submit(cancelled[-1])
        engine.step()
        if cancelled and rng.random() < 0.1:
            engine.cancel(cancelled.pop())
    return [request.tokens for request in requests]


def fixed_engine(assistant: Assistant, mesh=None, **options) -> Engine:
    return Engine(*assistant, mesh, rows=8, capacity=1024, **options)


def main(av_world: str, shape: str) -> None:
    engine = fixed_engine(tiny_assistant(), make_mesh(MeshConfig(*map(int, shape.split(",")))), responsive=True)
    requests = draw_requests(engine, Path(av_world))
    engine.compile()
    compiled = count_compilations()
    alone = answer_alone(engine, requests)
    together = answer_together(engine, requests)
    assert not compiled, compiled
    different = [index for index, pair in enumerate(zip(alone, together, strict=True)) if pair[0] != pair[1]]
    assert not different, different
    print("equal", len(requests), jax.device_count())


def count_compilations() -> list[str]:
    """Returns a list that grows with each compilation from now on."""
    compiled: list[str] = []

    def count(event: str, _seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    return compiled


if __name__ == "__main__":
    main(*sys.argv[1:])
