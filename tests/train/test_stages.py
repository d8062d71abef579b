"""Every stage at both sizes: real steps change exactly its modules, and its learning rate follows the formula."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import traverse_util

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.loader import Plan, read_batches
from omnivinci_jax.data.mixture import as_mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.mesh.rules import put_batch
from omnivinci_jax.model_dir import save
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Batch, Capacity
from omnivinci_jax.settings import DataConfig, TrainConfig, load_config
from omnivinci_jax.train.optimizer import learning_rate, make_optimizer
from omnivinci_jax.train.stages import STAGES, stage_before
from omnivinci_jax.train.state import abstract_state, create_state, split_trainable
from omnivinci_jax.train.step import make_train_step
from omnivinci_jax.train.supervised_loss import SupervisedLoss
from omnivinci_jax.train.untrained import without_trained
from tests.tiny import REPOSITORY, random_params, tiny_config, tiny_tokenizer

# From Section 3 and Appendix C.
TRAINS = {
    "stage_0": {"vision_tower", "llm"},
    "vision_1": {"mm_projector"},
    "vision_2": {"vision_tower", "mm_projector"},
    "vision_3": {"mm_projector", "llm"},
    "vision_4": {"vision_tower", "mm_projector", "llm"},
    "vision_5": {"vision_tower", "mm_projector", "llm"},
    "audio_1": {"sound_tower", "sound_mm_projector"},
    "audio_2": {"sound_tower", "sound_mm_projector", "llm"},
    "omni": {"mm_projector", "sound_mm_projector", "omni_align", "llm"},
}
NEVER = ("vision_tower/last_layer", "vision_tower/post_layernorm", "sound_tower/embed_positions")
NVILA = {  # rate, clipping, batch: scripts/NVILA of github.com/NVlabs/VILA
    "vision_1": (1e-3, None, 512),
    "vision_2": (2e-5, 5.0, 1024),
    "vision_3": (2e-5, None, 1024),
    "vision_4": (1.5e-5, 5.0, 1024),
    "vision_5": (2e-5, None, 2048),
}
CONVERSATIONS = {  # C.2.2 and C.4; the first three are ours
    "vision_1": 600_000,
    "vision_2": 2_000_000,
    "vision_3": 10_000_000,
    "vision_4": 8_000_000,
    "vision_5": 2_700_000,
    "audio_1": 50_000,
    "audio_2": 9_600_000,
}
ALL = [("tiny", stage) for stage in TRAINS] + [("omnivinci_9b", stage) for stage in list(TRAINS)[1:]]


def stage_config(size: str, stage: str) -> TrainConfig:
    return load_config([f"--config={REPOSITORY / 'configs' / 'stages' / size}.py:{stage}"])


def named(params: dict, stage: str) -> set[str]:
    paths = traverse_util.flatten_dict(params, sep="/")
    return {path for path in paths if path.split("/")[0] in TRAINS[stage] and not path.startswith(NEVER)}


@pytest.fixture(scope="module")
def data(av_world, tmp_path_factory) -> tuple[OmniVinciConfig, epath.Path, Batch]:
    """A model with few layers, its model directory, and a real batch with all modalities."""
    model = tiny_config()
    model = model.replace(
        text=dataclasses.replace(model.text, num_hidden_layers=1),
        vision=dataclasses.replace(model.vision, num_hidden_layers=2),
        audio=dataclasses.replace(model.audio, encoder_layers=1),
        omni_align=dataclasses.replace(model.omni_align, num_layers=1),
    )
    settings = DataConfig(groups=1, capacity=Capacity(rows=4, slots=304, tiles=96, windows=8, clips=8), workers=0)
    processor = Processor(model, tiny_tokenizer())
    index = build_index(Jsonl(av_world / "train.jsonl"), processor, settings.capacity, "skip", quiet=True)
    plan = Plan(as_mixture(index), settings.capacity, 0)
    (loaded,) = read_batches(index, plan, processor, settings, [0], start=0, stop=1)
    folder = epath.Path(tmp_path_factory.mktemp("start")) / "model"
    # A key's bias has next to no gradient: its steps would be rounded off beside any value but 0.
    params = traverse_util.path_aware_map(lambda path, leaf: leaf * (path[-1] != "bias"), random_params(model))
    save(folder, model, params, tiny_tokenizer())
    return model, folder, loaded.batch


@pytest.mark.parametrize("stage", TRAINS)
def test_exactly_the_modules_of_a_stage_change(stage, data):
    model_config, start, batch = data
    config = stage_config("tiny", stage)
    optimizer = dataclasses.replace(config.optimizer, name="adamw")  # compiles in half the time
    config = dataclasses.replace(
        config, model=model_config, optimizer=optimizer, tower_remat="none", decoder_remat="none"
    )
    mesh = make_mesh(config.mesh)
    with on_mesh(mesh):
        model, optimizer = OmniVinci(config.model), make_optimizer(config.optimizer, config.steps, config.model)
        _, shardings = abstract_state(model, optimizer, config, mesh)
        state = create_state(model, optimizer, config, shardings, start)
        step = make_train_step(SupervisedLoss(model, config.align_weight), optimizer, shardings)
        before = jax.device_get(state.params)
        batch = put_batch(batch, 1, mesh)
        for _ in range(3):  # the rate of the first step is 0
            state, metrics = step(state, batch)
        assert metrics["finite"]
        after = jax.device_get(state.params)
    before, after = (traverse_util.flatten_dict(tree, sep="/") for tree in (before, after))
    changed = {path for path, leaf in before.items() if not np.array_equal(leaf, after[path])}
    assert changed == named(jax.device_get(state.params), stage)
    # A parameter has optimizer state if a path in that state ends with the parameter's path.
    moments = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in _leaves(state.opt_state)]
    with_state = {path for path in before if any(moment.endswith(f"/{path}") for moment in moments)}
    assert with_state == changed
    modules = set(state.params)
    assert set(without_trained(modules, state)) == modules - set(TRAINS[stage])


def _leaves(tree) -> list:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


@pytest.mark.parametrize(("size", "stage"), ALL)
def test_each_size_trains_the_modules_of_a_stage(size, stage):
    config = stage_config(size, stage)
    shapes = abstract_params(config.model)
    trainable, _ = split_trainable(shapes, config)
    assert set(traverse_util.flatten_dict(trainable, sep="/")) == named(shapes, stage)


@pytest.mark.parametrize(("size", "stage"), ALL)
def test_the_rate_of_every_step_follows_the_formula(size, stage):
    """Checks the schedule, and a parameter's update, which is proportional to the rate under a constant gradient."""
    config = stage_config(size, stage)
    # The number of steps of a 9B stage if every row holds one conversation.
    rows = config.data.groups * config.data.capacity.rows
    total = config.steps or (config.stop_after_conversations or 24_000_000) // rows
    optimizer = make_optimizer(config.optimizer, total, config.model)

    def move(state, _):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return state, jax.tree.leaves(updates)[0][0, 0]

    params = {"mm_projector": {"fc1": {"kernel": jnp.zeros((1, 1))}}}
    _, moved = jax.jit(lambda: jax.lax.scan(move, optimizer.init(params), length=total))()

    steps, warmup = np.arange(total), round(0.03 * total)
    cosine = (1 + np.cos(np.pi * (steps - warmup) / (total - warmup))) / 2
    expected = config.optimizer.learning_rate * np.where(steps < warmup, steps / warmup, cosine)
    rates = learning_rate(config.optimizer, total)(steps)
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-6 * config.optimizer.learning_rate)
    np.testing.assert_allclose(moved / moved[warmup], expected / expected[warmup], rtol=2e-3, atol=1e-6)


def test_published_numbers():
    for stage, (rate, clip, batch) in NVILA.items():
        config = stage_config("omnivinci_9b", stage)
        assert (config.optimizer.learning_rate, config.optimizer.clip_norm) == (rate, clip)
        assert config.data.groups * config.data.capacity.rows == batch
        assert config.optimizer.weight_decay == 0 and config.optimizer.name == "adamw"
    omni = stage_config("omnivinci_9b", "omni")
    assert omni.optimizer.learning_rate == 2e-5 and omni.optimizer.warmup == 0.03 and omni.align_weight > 0
    lengths = {stage: stage_config("omnivinci_9b", stage) for stage in list(TRAINS)[1:]}
    lengths = {stage: (config.steps, config.stop_after_conversations) for stage, config in lengths.items()}
    assert lengths == {stage: (0, count) for stage, count in CONVERSATIONS.items()} | {"omni": (0, 0)}
    assert omni.stop_after_tokens == 200e9


@pytest.mark.parametrize("name", ["omnivinci_9b.py", "mixture.py"])
def test_joint_training_freezes_both_encoders(name):
    config = load_config([f"--config={REPOSITORY / 'configs' / name}"])
    shapes = abstract_params(config.model)
    trainable, _ = split_trainable(shapes, config)
    assert set(traverse_util.flatten_dict(trainable, sep="/")) == named(shapes, "omni")


def test_the_joint_stage_trains_on_the_mixture_with_spoken_prompts():
    mixture = load_config([f"--config={REPOSITORY / 'configs' / 'mixture.py'}"]).data.sources
    data = stage_config("omnivinci_9b", "omni").data
    assert data.sources == mixture and not data.train
    assert {source.modality for source in data.sources if source.speech_share} == {"image"}


def test_each_stage_starts_from_the_previous_one():
    assert list(STAGES) == list(TRAINS) and stage_before("audio_1") == "vision_5"
    assert stage_config("tiny", "stage_0").start_from == ""
    for size, stage in ALL[1:]:
        assert Path(stage_config(size, stage).start_from).name == stage_before(stage)


@pytest.mark.parametrize(("size", "stage"), [("tiny", "vison_1"), ("omnivinci_9b", "stage_0"), ("tiny", "")])
def test_an_unknown_stage_gives_one_line(size, stage):
    with pytest.raises(ConfigError, match=f"^'{stage}': no such stage; "):
        stage_config(size, stage)
