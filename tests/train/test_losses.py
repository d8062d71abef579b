import jax.numpy as jnp
import numpy as np

from omnivinci_jax.train.losses import contrastive_loss, language_loss, right_tokens, token_losses

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


def test_language_loss_is_the_mean_over_trained_tokens():
    logits, targets = RANDOM.normal(size=(2, 5, 11)) * 8, RANDOM.integers(0, 11, (2, 5))
    weights = np.array([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probabilities, targets[..., None], -1)[..., 0])[weights > 0].mean()
    losses = token_losses(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(language_loss(losses, jnp.array(weights)), expected, rtol=1e-5)


def test_a_slot_is_right_when_greedy_decoding_would_say_it_or_nothing_is_asked():
    logits = jnp.array([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    assert right_tokens(logits, jnp.array([1, 2]), jnp.array([1, 1])).tolist() == [True, False]
    assert right_tokens(logits, jnp.array([1, 2]), jnp.array([1, 0])).tolist() == [True, True]
