from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.train import losses as losses_module
from omnivinci_jax.train.losses import contrastive_loss, token_losses, weighted_mean
from tests.tiny import tiny_config

RANDOM = np.random.default_rng(0)


def unit(rows: int) -> np.ndarray:
    x = RANDOM.normal(size=(rows, 16))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def equation_1(vision: np.ndarray, audio: np.ndarray) -> float:
    """Equation (1) as it is written, in float64."""
    similarity = np.exp(vision @ audio.T)
    to_audio = -np.log(np.diag(similarity) / similarity.sum(axis=1)).mean()
    to_vision = -np.log(np.diag(similarity) / similarity.sum(axis=0)).mean()
    return (to_audio + to_vision) / 2


def test_contrastive_loss_is_equation_1_over_the_clips_that_are_there():
    vision, audio = unit(7), unit(7)
    source = np.array([3, 0, 1, 4, 0, 9, 2])
    there = source > 0
    loss, metrics = contrastive_loss(jnp.array(vision), jnp.array(audio), jnp.array(source))
    np.testing.assert_allclose(loss, equation_1(vision[there], audio[there]), rtol=1e-6)
    assert metrics["clips"] == 5
    order = (vision @ audio.T)[np.ix_(there, there)].argmax(axis=1)
    np.testing.assert_allclose(metrics["vision_to_audio_r1"], (order == np.arange(5)).mean())


def test_retrieval_is_the_rank_of_the_other_stream():
    vision, audio = unit(40), unit(40)
    _, metrics = contrastive_loss(jnp.array(vision), jnp.array(audio), jnp.arange(1, 41))
    for name, similarity in (("vision_to_audio", vision @ audio.T), ("audio_to_vision", audio @ vision.T)):
        rank = [(row > row[own]).sum() for own, row in enumerate(similarity)]
        for most in (1, 5):
            np.testing.assert_allclose(metrics[f"{name}_r{most}"], (np.array(rank) < most).mean(), rtol=1e-6)


def test_what_is_as_similar_as_the_right_one_is_no_hit():
    same = jnp.ones((3, 16)) / 4
    _, metrics = contrastive_loss(same, same, jnp.array([1, 2, 3]))
    assert metrics["vision_to_audio_r1"] == 0 and metrics["audio_to_vision_r5"] == 1


def test_clips_of_one_file_are_not_each_others_negatives():
    vision, audio = unit(3), unit(3)
    loss, _ = contrastive_loss(jnp.array(vision), jnp.array(audio), jnp.array([5, 5, 8]))
    similarity = np.exp(vision @ audio.T)
    similarity[0, 1] = similarity[1, 0] = 0
    to_audio = -np.log(np.diag(similarity) / similarity.sum(axis=1)).mean()
    to_vision = -np.log(np.diag(similarity) / similarity.sum(axis=0)).mean()
    np.testing.assert_allclose(loss, (to_audio + to_vision) / 2, rtol=1e-6)


def test_no_clip_at_all_is_no_loss():
    loss, _ = contrastive_loss(jnp.array(unit(3)), jnp.array(unit(3)), jnp.zeros(3, int))
    assert loss == 0


def test_weighted_mean_is_the_mean_over_trained_tokens():
    logits, targets = RANDOM.normal(size=(2, 5, 11)) * 8, RANDOM.integers(0, 11, (2, 5))
    weights = np.array([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probabilities, targets[..., None], -1)[..., 0])[weights > 0].mean()
    losses = token_losses(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(weighted_mean(losses, jnp.array(weights)), expected, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_slots_are_scored_alike_whole_and_in_pieces(tied, monkeypatch):
    """Losses, right tokens and the gradients of head and hidden states, with pieces that do not divide the slots."""
    model = OmniVinci(tiny_config(text=replace(tiny_config().text, tie_word_embeddings=tied)))
    random = jax.tree.map(lambda leaf: RANDOM.normal(size=leaf.shape).astype(np.float32), abstract_params(model.config))
    hidden = jnp.array(RANDOM.normal(size=(1, 2, 7, 128)), jnp.float32)
    targets, weights = jnp.array(RANDOM.integers(0, 512, (1, 2, 7))), jnp.array(RANDOM.random((1, 2, 7)))

    def scored(head, hidden):
        losses, right = losses_module.score_slots(model, head, hidden, targets)
        return (losses * weights).sum(), (losses, right)

    def run(head, hidden):
        (_, scores), gradients = jax.jit(jax.value_and_grad(scored, argnums=(0, 1), has_aux=True))(head, hidden)
        return scores, gradients

    head = model.head_params(random)
    (losses, right), gradients = run(head, hidden)
    logits = model.apply({"params": random}, hidden, method=model.logits)
    np.testing.assert_allclose(losses, token_losses(logits, targets), rtol=1e-5)
    np.testing.assert_array_equal(right, np.argmax(logits, axis=-1) == targets)

    monkeypatch.setattr(losses_module, "MOST_LOGITS", 512 * 4)  # pieces of 4 slots
    (losses_again, right_again), gradients_again = run(head, hidden)
    assert "f32[4,512]" in str(jax.make_jaxpr(scored)(head, hidden))
    np.testing.assert_allclose(losses_again, losses, rtol=1e-6)
    np.testing.assert_array_equal(right_again, right)
    for whole, pieces in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_again), strict=True):
        np.testing.assert_allclose(pieces, whole, atol=1e-5 * np.abs(whole).max())
