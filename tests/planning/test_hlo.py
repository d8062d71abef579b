"""Collectives in HLO text: device groups, trip counts, and a program compiled for a mesh."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from omnivinci_jax.planning.hlo import parse, read_traffic

MESH = {"data": 2, "fsdp": 4, "tensor": 2}


def program(body: str, computations: str = "") -> str:
    return f"HloModule m\n\n{computations}\nENTRY %main (p: bf16[8,128]) -> bf16[8,128] {{\n{body}\n}}\n"


def gather(groups: str) -> str:
    return program(
        "  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)\n"
        "  ROOT %g = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, "
        f'replica_groups={groups}, dimensions={{0}}, backend_config={{"x":"(y"}}'
    )


@pytest.mark.parametrize(
    ("groups", "axes", "members"),
    [
        ("{{0,2,4,6},{1,3,5,7},{8,10,12,14},{9,11,13,15}}", ("fsdp",), 4),
        ("[4,4]<=[2,4,2]T(0,2,1)", ("fsdp",), 4),
        ("[8,2]<=[16]", ("tensor",), 2),
        ("[2,8]<=[8,2]T(1,0)", ("data", "fsdp"), 8),
        ("mesh['a'=8,'b'=2] {'a'}", ("data", "fsdp"), 8),
        ("mesh['a'=8,'b'=2] {'b'}", ("tensor",), 2),
        ("mesh['a'=8,'b'=2] {'a':(2)4}", ("fsdp",), 4),
        ("mesh['a'=8,'b'=2] {'a':(1)2,'b'}", ("data", "tensor"), 4),
        ("mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a'}", ("tensor",), 2),
        ("mesh['a'=2,'b'=8], device_ids=(0,2,4,6,8,10,12,14,1,3,5,7,9,11,13,15) {'a'}", ("tensor",), 2),
        ("{}", ("data", "fsdp", "tensor"), 16),
    ],
)
def test_groups_map_to_mesh_axes(groups, axes, members):
    (collective,) = read_traffic(gather(groups), MESH).collectives
    assert collective == ("all-gather", axes, 1, (members - 1) * 8 * 128 * 2)


def test_groups_of_one_send_nothing():
    assert read_traffic(gather("[16,1]<=[16]"), MESH).collectives == []


def test_an_unknown_form_is_an_error():
    with pytest.raises(ValueError, match="unknown form"):
        read_traffic(gather("v9:all"), MESH)


@pytest.mark.parametrize(
    ("opcode", "sent"),
    [("all-reduce", 2 * 3 / 4), ("reduce-scatter", 3 / 4), ("all-to-all", 3 / 4), ("all-gather-start", 3)],
)
def test_bytes_sent_in_a_ring_count_all_operands(opcode, sent):
    text = program(
        "  %p = bf16[8,128]{1,0} parameter(0)\n"
        "  %q = (f32[4]{0}, pred[2]{0}, /*index=2*/f8e4m3fn[2]{0}) custom-call(%p)\n"
        f"  ROOT %g = (bf16[8,128]{{1,0}}, f32[4]{{0}}) {opcode}(%p, %q), replica_groups=[4,4]<=[2,4,2]T(0,2,1)"
    )
    (collective,) = read_traffic(text, MESH).collectives
    assert collective.sent == sent * (8 * 128 * 2 + 16 + 2 + 2)


def test_a_permutation_maps_to_the_axis_of_its_pairs():
    text = program(
        "  %p = bf16[8,128]{1,0} parameter(0)\n"
        "  ROOT %c = bf16[8,128]{1,0} collective-permute(%p), source_target_pairs={{0,2},{2,4},{4,6},{6,0},{8,10}}"
    )
    (collective,) = read_traffic(text, MESH).collectives
    assert collective == ("collective-permute", ("fsdp",), 1, 8 * 128 * 2)


LOOP = """
%condition (t: (u32[], bf16[8,128])) -> pred[] {
  %limit = u32[]{:T(128)} constant(9)
  %t = (u32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (t: (u32[], bf16[8,128])) -> (u32[], bf16[8,128]) {
  %t = (u32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%t), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%t), index=1
  %r = bf16[8,128]{1,0} all-reduce(%x), channel_id=3, replica_groups=[8,2]<=[16], to_apply=%sum
  %step = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %step)
  ROOT %out = (u32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%next, %r)
}

%sum (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %s = bf16[] add(%a, %b)
}
"""


def looped(loop_attributes: str = "", direction: str = "LT") -> str:
    return program(
        "  %p = bf16[8,128]{1,0} parameter(0)\n  %zero = u32[] constant(0)\n  %start = u32[] copy(%zero)\n"
        "  %in = (u32[], bf16[8,128]{1,0}) tuple(%start, %p)\n"
        f"  %w = (u32[], bf16[8,128]{{1,0}}) while(%in), condition=%condition, body=%body{loop_attributes}\n"
        "  ROOT %o = bf16[8,128]{1,0} get-tuple-element(%w), index=1",
        LOOP.replace("direction=LT", f"direction={direction}"),
    )


@pytest.mark.parametrize(
    ("text", "times", "unknown"),
    [
        (looped(', backend_config={"known_trip_count":{"n":"28"},"known_init_step":{"init":"0"}}'), 28, 0),
        (looped(), 5, 0),  # 0, 2, 4, 6, 8
        (looped(direction="NE"), 1, 1),
    ],
)
def test_loops_multiply_by_their_trip_count(text, times, unknown):
    traffic = read_traffic(text, MESH)
    assert [(c.opcode, c.axes, c.times) for c in traffic.collectives] == [("all-reduce", ("tensor",), times)]
    assert traffic.unknown_loops == unknown


FUSED = """
%start (a: bf16[8,128]) -> bf16[32,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %g.1 = bf16[32,128]{1,0} all-gather(%a), channel_id=7, replica_groups=[4,4]<=[2,4,2]T(0,2,1), backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
}

%step (a: bf16[8,128]) -> bf16[32,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %g.2 = bf16[32,128]{1,0} all-gather(%a), channel_id=7, replica_groups=[4,4]<=[2,4,2]T(0,2,1), backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%all-reduce-scatter (a: bf16[8,128]) -> bf16[2,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %r = bf16[8,128]{1,0} all-reduce(%a), channel_id=8, replica_groups=[4,4]<=[2,4,2]T(0,2,1)
  ROOT %d = bf16[2,128]{1,0} dynamic-slice(%r), dynamic_slice_sizes={2,128}
}
"""  # noqa: E501 - XLA's format


def test_fused_tpu_collectives_count_once_under_their_own_kind():
    text = program(
        "  %p = bf16[8,128]{1,0} parameter(0)\n"
        "  %f.1 = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%start\n"
        "  %f.2 = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%step\n"
        "  %f.3 = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%step\n"
        "  ROOT %f.4 = bf16[2,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter",
        FUSED,
    )
    assert read_traffic(text, MESH).by_axes() == {
        ("fsdp",): {"all-gather": 3 * 8 * 128 * 2, "reduce-scatter": 3 / 4 * 8 * 128 * 2}
    }


def test_text_without_an_entry_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule m\n")


LAYERS, WIDTH, HIDDEN, ROWS = 5, 64, 96, 32
COMPILED = f"""
    import jax, jax.numpy as jnp, json
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from omnivinci_jax.planning.hlo import read_traffic

    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    def abstract(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    up = abstract(({LAYERS}, {WIDTH}, {HIDDEN}), None, "fsdp", "tensor")
    down = abstract(({LAYERS}, {HIDDEN}, {WIDTH}), None, "tensor", "fsdp")
    x = abstract(({ROWS}, {WIDTH}), "fsdp")

    def layer(x, weights):
        x = jax.lax.with_sharding_constraint(x, P("fsdp"))
        up = jax.lax.with_sharding_constraint(weights[0], P(None, "tensor"))
        down = jax.lax.with_sharding_constraint(weights[1], P("tensor"))
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ up) @ down, P("fsdp")), None

    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda up, down, x: jax.lax.scan(layer, x, (up, down))[0]).lower(up, down, x).compile()
    traffic = read_traffic(compiled.as_text(), mesh.shape)
    print(json.dumps([traffic.unknown_loops, *([list(axes), sent] for axes, sent in traffic.by_axes().items())]))
"""


def test_a_program_compiled_for_eight_devices():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILED)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    unknown, *by_axes = json.loads(run.stdout.splitlines()[-1])
    sent = {tuple(axes): kinds for axes, kinds in by_axes}
    weights = 2 * LAYERS * WIDTH * HIDDEN // 2 * 4  # bytes per `tensor` shard
    sums = LAYERS * ROWS // 4 * WIDTH * 4
    assert unknown == 0
    assert sent[("fsdp",)] == {"all-gather": np.float64(weights * 3 / 4)}
    assert sent[("tensor",)] == {"all-reduce": np.float64(sums * 2 * 1 / 2)}
