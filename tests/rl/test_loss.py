"""The loss against float64 sums over answers and tokens, each written as its paper has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.rl import loss as loss_module
from omnivinci_jax.rl.advantages import group_advantages, token_weights
from omnivinci_jax.rl.loss import AnswerBatch, GRPOLoss, TokenScores, answer_loss, kl_estimate, policy_loss
from omnivinci_jax.sequence.assemble import empty_group
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.train.step import make_gradient
from tests.tiny import tiny_config

PROMPTS, ANSWERS, LONGEST = 3, 4, 12
EPSILON, BETA = 0.2, 0.04
RANDOM = np.random.default_rng(0)
REWARDS = RANDOM.choice([0.0, 0.5, 1.0, 2.0], (PROMPTS, ANSWERS))
REWARDS[1] = 0.1 + 0.2  # a group without a gradient, and with a mean that rounds
LENGTHS = RANDOM.integers(1, LONGEST + 1, (PROMPTS, ANSWERS))
SHAPE = (PROMPTS, ANSWERS, LONGEST)
LOGPROBS = -RANDOM.uniform(0.1, 4, SHAPE)
OLD = LOGPROBS + RANDOM.normal(scale=0.2, size=SHAPE)
REFERENCE = LOGPROBS + RANDOM.normal(scale=0.3, size=SHAPE)


def oracle(logprobs: np.ndarray, variant: str, old: np.ndarray, beta: float, kept: np.ndarray) -> float:
    """The loss as the papers define it: a loop over prompts, answers and tokens."""
    total, tokens = 0.0, sum(LENGTHS[kept])
    for prompt in range(PROMPTS):
        rewards = REWARDS[prompt]
        for answer in range(ANSWERS):
            if not kept[prompt, answer]:
                continue
            advantage = rewards[answer] - sum(rewards) / ANSWERS
            spread = np.sqrt(sum((reward - sum(rewards) / ANSWERS) ** 2 for reward in rewards) / ANSWERS)
            if variant != "dr_grpo":
                advantage = advantage / spread if len(set(rewards)) > 1 else 0.0
            length, answer_sum = LENGTHS[prompt, answer], 0.0
            for token in range(length):
                at = prompt, answer, token
                ratio = np.exp(logprobs[at] - old[at])
                clipped = min(max(ratio, 1 - EPSILON), 1 + EPSILON)
                x = np.exp(REFERENCE[at] - logprobs[at])
                answer_sum += min(ratio * advantage, clipped * advantage) - beta * (x - np.log(x) - 1)
            share = {
                "grpo": 1 / (PROMPTS * ANSWERS) / length,  # DeepSeekMath, Equation (3)
                "dapo": 1 / tokens,  # DAPO, Equation (8), over the whole batch
                "dr_grpo": 1 / (PROMPTS * ANSWERS) / LONGEST,  # Understanding R1-Zero-Like Training, Equation (1)
            }[variant]
            total += share * answer_sum
    return -total


def gradient(logprobs: np.ndarray, *arguments) -> np.ndarray:
    """Central differences of the oracle."""
    found, step = np.zeros(SHAPE), 1e-5
    for index in np.ndindex(SHAPE):
        change = np.zeros(SHAPE)
        change[index] = step
        found[index] = (oracle(logprobs + change, *arguments) - oracle(logprobs - change, *arguments)) / (2 * step)
    return found


def batch(variant: str, old: np.ndarray | None, beta: float, kept: np.ndarray) -> AnswerBatch:
    weights = token_weights(LENGTHS.ravel(), kept.ravel(), variant, LONGEST).reshape(PROMPTS, ANSWERS, 1)
    advantages = group_advantages(REWARDS, variant)[..., None]
    is_answer = np.arange(LONGEST) < LENGTHS[..., None]
    rows = empty_group(tiny_config(), Capacity(1, 2, 1, 1, 1))._replace(loss_weights=jnp.asarray(weights * is_answer))
    reference = np.where(is_answer, REFERENCE, 1000.0)  # what padding has must not matter
    return AnswerBatch(
        rows,
        jnp.asarray(np.broadcast_to(advantages, SHAPE)),
        jnp.zeros(SHAPE),
        None if old is None else jnp.asarray(np.where(is_answer, old, -1000.0)),
        jnp.asarray(reference) if beta else None,
    )


@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize(("updates", "beta"), [(1, BETA), (2, BETA), (2, 0.0)])
def test_values_and_gradients_are_those_of_the_formula(variant, updates, beta):
    kept = np.ones((PROMPTS, ANSWERS), bool)
    kept[0, 2] = False  # cut off, and masked
    old = OLD if updates > 1 else LOGPROBS  # the first update changes the policy that sampled
    values = batch(variant, OLD if updates > 1 else None, beta, kept)

    def loss(logprobs: jax.Array) -> jax.Array:
        return answer_loss(logprobs, values, EPSILON, beta)[0]

    found, found_gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(LOGPROBS))
    assert found_gradient.dtype == jnp.float32
    np.testing.assert_allclose(found, oracle(LOGPROBS, variant, old, beta, kept), atol=1e-6)
    expected = gradient(LOGPROBS, variant, old, beta, kept)
    np.testing.assert_allclose(found_gradient, expected, atol=1e-6)
    assert np.abs(expected[0]).max() > 1e-3 and not np.abs(expected[0, 2]).any()


def test_advantages_are_equation_7():
    rewards = np.array([[2.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    found = group_advantages(rewards, "grpo")
    np.testing.assert_allclose(found, [[2**0.5, -(2**0.5), 0, 0], [0, 0, 0, 0]], atol=1e-12)
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(group_advantages(rewards, "dr_grpo"), [[1, -1, 0, 0], [0, 0, 0, 0]], atol=1e-12)


def test_clipping_stops_the_gradient_only_where_the_ratio_went_too_far_with_the_advantage():
    ratios, advantages = np.array([1.5, 1.5, 0.5, 0.5, 1.1]), np.array([1.0, -1.0, 1.0, -1.0, 1.0])

    def loss(logprobs: jax.Array) -> jax.Array:
        return policy_loss(logprobs, jnp.zeros(5), jnp.asarray(advantages), 0.2)[0].sum()

    losses, clipped = policy_loss(jnp.log(ratios), jnp.zeros(5), jnp.asarray(advantages), 0.2)
    np.testing.assert_allclose(losses, [-1.2, 1.5, -0.5, 0.8, -1.1], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [True, False, False, True, False])
    np.testing.assert_allclose(jax.grad(loss)(jnp.log(ratios)), [0, 1.5, -0.5, 0, -1.1], rtol=1e-6)


def test_k3_is_exact_for_small_differences():
    difference = np.array([1e-3, -1e-3, 1e-2, 1.0, -1.0])
    exact = np.exp(-difference) - 1 + difference
    np.testing.assert_allclose(kl_estimate(jnp.asarray(difference), jnp.zeros(5)), exact, rtol=1e-3)


def test_microbatches_give_the_loss_gradient_and_metrics_of_the_whole_batch(monkeypatch):
    def scores(_model, params: dict, rows, _temperature) -> TokenScores:
        logprobs = -params["scale"] * rows.tokens
        return TokenScores(logprobs, logprobs + 0.25, 2 * rows.tokens * params["scale"])

    monkeypatch.setattr(loss_module, "score_tokens", scores)
    values = batch("dapo", OLD, BETA, np.ones((PROMPTS, ANSWERS), bool))
    empty = empty_group(tiny_config(), Capacity(ANSWERS, LONGEST, 1, 1, 1))
    rows = jax.tree.map(lambda x: np.stack([x] * 4), empty)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), values._replace(rows=values.rows.loss_weights))
    tokens = jnp.asarray(RANDOM.uniform(0.5, 2, (4, *SHAPE[1:])))
    whole = padded._replace(rows=rows._replace(tokens=tokens, loss_weights=padded.rows))
    loss_fn, params = GRPOLoss(OmniVinci(tiny_config()), EPSILON, BETA), {"scale": jnp.float32(1.0)}
    gradient, metrics = jax.jit(make_gradient(loss_fn))(params, {}, whole)
    counted = np.asarray(padded.rows) > 0
    np.testing.assert_allclose(metrics["entropy"], 2 * np.asarray(tokens)[counted].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["sampler_difference"], (np.asarray(tokens) - 0.25)[counted].mean(), rtol=1e-6)
    assert set(metrics) == {"loss", "clipped", "kl", "entropy", "sampler_difference", "tokens"}
    for count in (2, 4):
        accumulated, found = jax.jit(make_gradient(loss_fn, count))(params, {}, whole)
        np.testing.assert_allclose(accumulated["scale"], gradient["scale"], rtol=1e-5)
        for name in metrics:
            np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5, err_msg=name)
