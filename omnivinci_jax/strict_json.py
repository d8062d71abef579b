"""JSON that every parser reads: Python writes NaN and infinities, which JSON does not have."""

import json
import math
from typing import Any

from etils import epath

from omnivinci_jax.errors import UserError


def dumps(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON, with null in place of numbers that are not finite."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def read(path: epath.PathLike) -> Any:
    """Reads a JSON file; raises UserError if it is cut short or otherwise not JSON."""
    try:
        return json.loads(epath.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cut short or damaged: not JSON: {error}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
