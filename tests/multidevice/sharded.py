"""A program that writes, as JSON, a model's bytes on each of eight devices and the results of commands on a mesh.

python -m tests.multidevice.sharded MODEL DATA OUT MESH... where a mesh is written as for --mesh.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import jax

from omnivinci_jax import cli
from omnivinci_jax.generate.assistant import load
from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.settings import parse_mesh


def count_bytes(tree: object) -> dict[str, float]:
    """Returns the most bytes on a device, the bytes of sharded arrays, and those of replicated arrays."""
    leaves, devices = jax.tree.leaves(tree), dict.fromkeys(jax.devices(), 0)
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            devices[shard.device] += shard.data.nbytes
    replicated = sum(leaf.nbytes for leaf in leaves if leaf.sharding.is_fully_replicated)
    return {
        "most": max(devices.values()),
        "sharded": sum(leaf.nbytes for leaf in leaves) - replicated,
        "replicated": replicated,
    }


def run_commands(model: Path, data: Path, out: Path, *flags: str) -> dict[str, object]:
    """Returns the results of `evaluate` and `generate`."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        common = ["--model", str(model), "--data", str(data), "--rows", "2", *flags]
        assert cli.main(["evaluate", *common, "--out", str(out)]) == 0
        printed.truncate(0)
        assert cli.main(["generate", *common, "--max_new_tokens", "6"]) == 0
    answers = [json.loads(line)["text"] for line in printed.getvalue().lstrip("\0").splitlines()]
    return {"results": json.loads(out.read_text()), "answers": answers}


def main(model: str, data: str, out: str, *meshes: str) -> None:
    found = {}
    for name in meshes:
        assistant = load(model, mesh=make_mesh(parse_mesh(name)))
        found[name] = {"parameters": count_bytes(assistant.params), "weights": count_bytes(assistant.engine.weights)}
    commands = run_commands(Path(model), Path(data), Path(out).with_suffix(".results"), "--mesh", meshes[-1])
    Path(out).write_text(json.dumps({"bytes": found, "commands": commands}))


if __name__ == "__main__":
    main(*sys.argv[1:])
