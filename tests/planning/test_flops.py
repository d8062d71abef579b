"""FLOPs counted from shapes against a manual count and XLA's count, and the effect of freezing."""

import dataclasses
from types import SimpleNamespace
from unittest.mock import NonCallableMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from omnivinci_jax.config import OmniAlignConfig
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.planning.flops import FlopCounter, Flops, full_work, make_flop_rates
from omnivinci_jax.sequence.assemble import empty_group
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, GRPOConfig, TrainConfig
from omnivinci_jax.train.losses import token_losses, weighted_mean
from omnivinci_jax.train.metrics import Work
from omnivinci_jax.train.state import merge, split
from tests.tiny import tiny_settings

TOWERS = ("vision_tower/.*", "sound_tower/.*")
FIXED = ("vision_tower/last_layer/.*", "vision_tower/post_layernorm/.*", "sound_tower/embed_positions/.*")


def test_manual_count_of_the_tiny_model():
    work = Work(slots=100, slot_pairs=60**2 + 40**2, tiles=8, windows=3, clips=2)
    patches, layer = 2 * 2, 4 * 64 * 64 + 2 * 64 * 128
    vision = 8 * patches * 2 * (14 * 14 * 3 * 64 + 2 * layer) + 8 * 2 * 4 * patches**2 * 64
    vision += 8 * 2 * (3 * 4 * 64 * 128 + 128 * 128)  # one token a tile: 2x2 patches of three scales
    sound = 3 * 2 * (240 * 3 * 128 * 64 + 120 * 3 * 64 * 64 + 120 * 2 * layer) + 3 * 2 * 4 * 120**2 * 64
    sound += 3 * 30 * 2 * (64 * 128 + 128 * 128)
    align = 3 * (8 + 2 + 90 + 2) * 2 * 4 * 128**2 + 3 * 4 * 128 * 2 * (5**2 + 46**2)
    pairs = 60 * 61 // 2 + 40 * 41 // 2
    decoder = 100 * 2 * (3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384) + 128 * 512) + 3 * 4 * 128 * pairs
    forward = FlopCounter(tiny_settings()).forward(work)
    assert forward == pytest.approx((vision, sound, align, decoder))
    assert forward.total == pytest.approx(vision + sound + align + decoder)


def test_encoders_that_do_not_train_are_not_part_of_an_update_of_grpo():
    frozen, work = (*TOWERS, "omni_align/.*"), Work(slots=100, slot_pairs=5000, tiles=8, windows=3, clips=2)
    changes = {"objective": "grpo", "align_weight": 0.0, "grpo": GRPOConfig(prompts=3)}
    data = dataclasses.replace(tiny_settings().data, capacity=Capacity(rows=8, slots=300, tiles=8, windows=3, clips=2))
    config = dataclasses.replace(tiny_settings(), frozen=frozen, data=data, **changes)
    found = FlopCounter(config).step(work)
    assert found.vision == 3 * 8 * 2 * (3 * 4 * 64 * 128 + 128 * 128)  # the projectors alone, which train
    assert found.sound == 3 * 3 * 30 * 2 * (64 * 128 + 128 * 128)
    trained = FlopCounter(dataclasses.replace(config, frozen=FIXED)).step(work)
    assert trained.vision > 3 * found.vision and trained.sound > 3 * found.sound


def test_full_groups():
    data = DataConfig(groups=3, capacity=Capacity(rows=2, slots=10, tiles=4, windows=5, clips=1))
    assert full_work(data) == Work(slots=60, slot_pairs=600, tiles=12, windows=15, clips=3)


def one_layer_each(**changes) -> TrainConfig:
    """One layer per part, wide enough that matrix products dominate elementwise operations."""
    settings = tiny_settings()
    model = settings.model.replace(
        text=dataclasses.replace(settings.model.text, num_hidden_layers=1, hidden_size=256, intermediate_size=768),
        vision=dataclasses.replace(
            settings.model.vision, num_hidden_layers=2, hidden_size=256, intermediate_size=512, image_size=112
        ),
        audio=dataclasses.replace(settings.model.audio, encoder_layers=1, d_model=256, encoder_ffn_dim=512),
        s2_scales=(112, 224, 336),
        omni_align=OmniAlignConfig(num_layers=1, num_heads=4),
    )
    data = DataConfig(groups=2, capacity=Capacity(rows=2, slots=192, tiles=3, windows=2, clips=1))
    return dataclasses.replace(settings, model=model, data=data, tower_remat="none", decoder_remat="none", **changes)


def xla_flops(config: TrainConfig, differentiate: bool) -> float:
    model = OmniVinci(config.model)
    group = empty_group(config.model, config.data.capacity)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((config.data.groups, *leaf.shape), leaf.dtype), group)
    trainable, frozen = split(abstract_params(model.config), config.frozen)

    def loss(trainable, frozen, batch):
        params = {"params": merge(trainable, frozen)}
        output = model.apply(params, batch)
        logits = model.apply(params, output.hidden, method=model.logits)
        clips = jnp.sum(output.clips.vision) + jnp.sum(output.clips.audio)
        return weighted_mean(token_losses(logits, batch.targets), batch.loss_weights) + clips

    function = jax.grad(loss) if differentiate else loss
    return jax.jit(function).lower(trainable, frozen, batch).cost_analysis()["flops"]


def test_forward_pass_against_xla():
    config = one_layer_each()
    assert FlopCounter(config).forward(full_work(config.data)).total == pytest.approx(xla_flops(config, False), rel=0.1)


@pytest.mark.parametrize("frozen", [FIXED, (*TOWERS, "llm/.*")])
def test_step_against_xla(frozen):
    config = one_layer_each(frozen=frozen)
    assert FlopCounter(config).step(full_work(config.data)).total == pytest.approx(xla_flops(config, True), rel=0.1)


def step_over_forward(**changes) -> Flops:
    config = dataclasses.replace(tiny_settings(), **changes)
    counter, work = FlopCounter(config), full_work(config.data)
    return Flops(*(step / forward for step, forward in zip(counter.step(work), counter.forward(work), strict=True)))


def test_trained_parts_cost_three_forward_passes():
    assert step_over_forward(frozen=FIXED) == pytest.approx((3, 3, 3, 3))


def test_frozen_parts_cost_only_the_gradients_that_flow_through_them():
    heads = ("mm_projector/.*", "sound_mm_projector/.*")
    assert step_over_forward(frozen=(*TOWERS, *heads))[:2] == (1, 1)
    passed = step_over_forward(frozen=(*TOWERS, "llm/.*"))
    assert 1 < passed.vision < 3 and passed.align == pytest.approx(3)  # the projectors are trained
    assert 2 < passed.decoder < 2.2  # attention costs three passes, weights two
    assert step_over_forward(frozen=(*TOWERS, *heads, "llm/.*")).decoder == 1  # only OmniAlignNet is trained


def test_omni_align_costs_nothing_without_its_loss():
    config = dataclasses.replace(tiny_settings(), align_weight=0.0)
    assert FlopCounter(config).step(full_work(config.data)).align == 0


def test_rematerialization():
    work = full_work(tiny_settings().data)

    def recomputed(**changes) -> tuple[Flops, Flops]:
        counter = FlopCounter(dataclasses.replace(tiny_settings(), **changes))
        return counter.recomputed(work), counter.forward(work)

    assert recomputed(tower_remat="none", decoder_remat="none")[0].total == 0
    full, forward = recomputed(tower_remat="full", decoder_remat="full")
    assert full.align == forward.align  # it consists of layers only
    assert 0.8 < full.decoder / forward.decoder < 1  # all except the head
    dots, _ = recomputed(tower_remat="dots", decoder_remat="dots")
    assert all(0 < less < more for less, more in zip(dots, full, strict=True))
    frozen, _ = recomputed(tower_remat="full", decoder_remat="full", frozen=TOWERS)
    assert frozen[:2] == (0, 0)


@pytest.mark.parametrize(("kind", "peak"), [("NVIDIA H200", 989e12), ("cpu", None)])
def test_utilization_uses_the_peak_of_all_chips(kind, peak):
    mesh = NonCallableMock(spec=Mesh, devices=np.array([SimpleNamespace(device_kind=kind)] * 4), size=4)
    config, work = tiny_settings(), full_work(tiny_settings().data)
    rates, flops = make_flop_rates(config, mesh)(work), FlopCounter(config).step(work)
    assert rates["tflops_per_second"] == flops.total / 1e12
    assert rates["encoder_tflops_per_second"] == (flops.vision + flops.sound) / 1e12
    assert rates.get("mfu") == (flops.total / (4 * peak) if peak else None)
