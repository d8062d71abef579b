"""Requests that join and leave a running batch, and engines whose weights are replaced."""

import jax
import numpy as np
import pytest

from omnivinci_jax.generate.assistant import conversation_of
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.media import MediaCache
from omnivinci_jax.generate.request import Request, Sampling
from tests.generate.continuous import (
    answer_alone,
    answer_together,
    count_compilations,
    draw_requests,
    fixed_engine,
)
from tests.generate.test_engine import full_logits


def test_answers_do_not_depend_on_what_else_runs(assistant, av_world):
    engine = fixed_engine(assistant, responsive=True)
    requests = draw_requests(engine, av_world)
    engine.compile()
    compiled = count_compilations()
    alone = answer_alone(engine, requests)
    assert answer_together(engine, requests) == alone
    assert not compiled
    assert len({tuple(tokens) for tokens in alone}) > 25


def test_log_probabilities_match_full_passes(assistant, clips):
    # The large random weights amplify rounding by a factor that depends on the clip: 60 between the best and the worst.
    question = [clips[1], "Which colour?"]
    requests = [
        Request(assistant.engine.prompt(conversation_of(question)), sampling)
        for sampling in (Sampling(max_new_tokens=8), Sampling(temperature=1.3, top_k=20, seed=2, max_new_tokens=8))
    ]
    for _ in assistant.engine.run(requests):
        pass
    for request in requests:
        logits = full_logits(assistant, question, request.tokens)
        logprobs = jax.nn.log_softmax(logits, axis=-1)[np.arange(len(logits)), np.array(request.tokens)]
        np.testing.assert_allclose(request.logprobs, logprobs, atol=1e-4)


@pytest.fixture(scope="module")
def other_params(assistant) -> dict:
    return jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim > 1 else leaf, assistant.params)


def greedy(engine: Engine, question) -> list[int]:
    request = Request(engine.prompt(conversation_of(question)), Sampling(max_new_tokens=12))
    for _ in engine.run([request]):
        pass
    return request.tokens


def updated_answers(assistant, params: dict, questions: list) -> list[list[int]]:
    """Returns the answers of an engine that answered the same questions with other weights before."""
    engine = fixed_engine(assistant)
    for question in questions:
        greedy(engine, question)
    engine.update(params)
    return [greedy(engine, question) for question in questions]


def test_updated_weights_answer_like_a_fresh_engine(assistant, other_params, clips, monkeypatch):
    questions = [[clips[0], "What happens?"], [clips[0], "What happens? And then?"], "Hello " * 50]
    fresh = Engine(assistant.model, other_params, assistant.processor, rows=8, capacity=1024)
    expected = [greedy(fresh, question) for question in questions]
    assert updated_answers(assistant, other_params, questions) == expected
    # The answers differ if media are not dropped. The rows' keys and values cannot stay: their arrays are gone.
    monkeypatch.setattr(MediaCache, "clear", lambda self: None)
    assert updated_answers(assistant, other_params, questions) != expected


def test_an_update_while_requests_run_is_an_error(assistant):
    engine = fixed_engine(assistant)
    prompt = engine.prompt(conversation_of("Hello"))
    request = Request(prompt, Sampling(max_new_tokens=12))
    engine.submit(request)
    with pytest.raises(RuntimeError, match="requests are running"):
        engine.update(assistant.params)
    engine.cancel(request)
    engine.release()
    with pytest.raises(RuntimeError, match=r"freed the weights: call Engine.update first"):
        greedy(engine, "Hello again")
    engine.update(assistant.params)
    with pytest.raises(ValueError, match=r"the prompt was encoded with weights that Engine.update has replaced"):
        engine.submit(Request(prompt))
