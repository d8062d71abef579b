"""`omnivinci quantize`: reads its arguments and quantizes a model directory."""

from pathlib import Path

from omnivinci_jax.errors import UserError
from omnivinci_jax.quantize.model import quantize_model
from omnivinci_jax.quantize.recipes import Recipe


def run(arguments) -> int:
    """Runs the command; see `quantize_model` for the errors."""
    method = arguments.method or ("rtn" if arguments.recipe == "fp8" else "calibrated")
    if method == "calibrated" and arguments.recipe == "fp8":
        raise UserError("--method calibrated: recipe fp8 only rounds to nearest")
    if method == "calibrated" and not arguments.calibration:
        raise UserError(
            f"recipe {arguments.recipe} needs --calibration FILE.jsonl, conversations with images or video and sound; "
            "or round to nearest with --method rtn"
        )
    if method == "rtn" and arguments.calibration:
        raise UserError(f"--calibration: recipe {arguments.recipe} rounds to nearest and reads no data")
    recipe = Recipe(arguments.recipe, method, tuple(arguments.modules), arguments.group_size)
    quantize_model(Path(arguments.model), Path(arguments.out), recipe, arguments.calibration)
    print(f"model: {arguments.out}")
    return 0
