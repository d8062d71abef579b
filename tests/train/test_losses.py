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
    """Equation (1) as written, in float64."""
    similarity = np.exp(vision @ audio.T)
    to_audio = -np.log(np.diag(similarity) / similarity.sum(axis=1)).mean()
    to_vision = -np.log(np.diag(similarity) / similarity.sum(axis=0)).mean()
    return (to_audio + to_vision) / 2


def test_contrastive_loss_is_equation_1_over_the_valid_clips():
    vision, audio = unit(7), unit(7)
    source = np.array([3, 0, 1, 4, 0, 9, 2])
    valid = source > 0
    loss, metrics = contrastive_loss(jnp.array(vision), jnp.array(audio), jnp.array(source))
    np.testing.assert_allclose(loss, equation_1(vision[valid], audio[valid]), rtol=1e-6)
    assert metrics["clips"] == 5
    order = (vision @ audio.T)[np.ix_(valid, valid)].argmax(axis=1)
    np.testing.assert_allclose(metrics["vision_to_audio_r1"], (order == np.arange(5)).mean())


def test_retrieval_accuracy_counts_ranks_of_the_other_stream():
    vision, audio = unit(40), unit(40)
    _, metrics = contrastive_loss(jnp.array(vision), jnp.array(audio), jnp.arange(1, 41))
    for name, similarity in (("vision_to_audio", vision @ audio.T), ("audio_to_vision", audio @ vision.T)):
        rank = [(row > row[own]).sum() for own, row in enumerate(similarity)]
        for k in (1, 5):
            np.testing.assert_allclose(metrics[f"{name}_r{k}"], (np.array(rank) < k).mean(), rtol=1e-6)


def test_a_tie_counts_as_worse_in_retrieval():
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


def test_the_loss_without_clips_is_0():
    loss, _ = contrastive_loss(jnp.array(unit(3)), jnp.array(unit(3)), jnp.zeros(3, int))
    assert loss == 0


def test_weighted_mean_is_the_mean_over_trained_tokens():
    logits, targets = RANDOM.normal(size=(2, 5, 11)) * 8, RANDOM.integers(0, 11, (2, 5))
    weights = np.array([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]], np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probabilities, targets[..., None], -1)[..., 0])[weights > 0].mean()
    losses = token_losses(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(weighted_mean(losses, jnp.array(weights)), expected, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_scores_in_pieces_equal_scores_at_once(tied, monkeypatch):
    """Compares losses, correct tokens and gradients of head and hidden states; the pieces do not divide the slots."""
    model = OmniVinci(tiny_config(text=replace(tiny_config().text, tie_word_embeddings=tied)))
    random = jax.tree.map(lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape)), abstract_params(model.config))
    hidden = jnp.array(RANDOM.normal(size=(1, 2, 7, 128)), jnp.float32)
    targets, weights = jnp.array(RANDOM.integers(0, 512, (1, 2, 7))), jnp.array(RANDOM.random((1, 2, 7)))

    def scored(head, hidden):
        losses, correct = losses_module.score_slots(model, head, hidden, targets)
        return (losses * weights).sum(), (losses, correct)

    def run(head, hidden):
        (_, scores), gradients = jax.jit(jax.value_and_grad(scored, argnums=(0, 1), has_aux=True))(head, hidden)
        return scores, gradients

    head = model.head_params(random)
    (losses, correct), gradients = run(head, hidden)
    logits = model.apply({"params": random}, hidden, method=model.logits)
    np.testing.assert_allclose(losses, token_losses(logits, targets), rtol=1e-5)
    np.testing.assert_array_equal(correct, np.argmax(logits, axis=-1) == targets)

    monkeypatch.setattr(losses_module, "MAX_LOGITS", 512 * 4)  # pieces of 4 slots
    (losses_again, correct_again), gradients_again = run(head, hidden)
    assert "f32[4,512]" in str(jax.make_jaxpr(scored)(head, hidden))
    np.testing.assert_allclose(losses_again, losses, rtol=1e-6)
    np.testing.assert_array_equal(correct_again, correct)
    for whole, pieces in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_again), strict=True):
        np.testing.assert_allclose(pieces, whole, atol=1e-5 * np.abs(whole).max())
