"""Convert PyTorch files to a model directory.

python -m conversion.from_torch SRC DIR
python -m conversion.from_torch DIR --llm QWEN2.5 --vision_tower SIGLIP --sound_tower AF_WHISPER
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conversion.command import progress, run
from conversion.source import DTYPE_NAMES, open_source
from omnivinci_jax import leaves
from omnivinci_jax.config_json import write_config
from omnivinci_jax.leaves import LazyLeaf, Pieces
from omnivinci_jax.mesh.processes import atomic_directory


def from_torch(
    source: Path | None,
    destination: Path,
    *,
    dtype: str | None = None,
    parts: Mapping[str, Path] | None = None,
    tokenizer: Path | None = None,
) -> list[str]:
    """Converts PyTorch files to the model directory `destination` and returns notes for the user.

    Holds a few tensors in memory at a time. For the arguments and errors see `open_source`; also raises UserError if
    `destination` exists.
    """
    with atomic_directory(destination, replace=False) as staged:
        part = Path(staged)
        opened = open_source(source, parts, tokenizer, dtype)
        total = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in opened.leaves.values())
        with progress(total, "from_torch") as bar:
            tracked = {path: _with_progress(leaf, bar) for path, leaf in opened.leaves.items()}
            leaves.save(part / "params", tracked)
        write_config(opened.config, part / "config.json", opened.base, opened.untrained, opened.quantization)
        if opened.tokenizer:
            opened.tokenizer.save(part)
    return opened.notes


def _with_progress(leaf: LazyLeaf, bar: tqdm) -> LazyLeaf:
    def pieces() -> Pieces:
        for index, piece in leaf.pieces():
            yield index, piece
            bar.update(piece.nbytes)

    return dataclasses.replace(leaf, pieces=pieces)


def main(arguments: list[str], prog: str = "python -m conversion.from_torch") -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, nargs="?", help="checkpoint in the released or merged layout")
    parser.add_argument("destination", type=Path, help="model directory to create")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="cast all parameters; default: keep their types")
    examples = dict(llm="Qwen2.5, a Llama or a GGUF file", vision_tower="SigLIP", sound_tower="AF-Whisper")
    for part, example in examples.items():
        parser.add_argument(f"--{part}", type=Path, help=f"checkpoint to take this part from, such as {example}")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer, if it is not in the checkpoint")
    options = parser.parse_intermixed_args(arguments)
    parts = {name: getattr(options, name) for name in ("llm", "vision_tower", "sound_tower") if getattr(options, name)}
    notes = from_torch(
        options.source, options.destination, dtype=options.dtype, parts=parts, tokenizer=options.tokenizer
    )
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {options.destination}")
    return 0


if __name__ == "__main__":
    run(main)
