"""Recipes: which dense kernels become which quantized arrays (Appendix D.2)."""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from flax import traverse_util

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.errors import UserError
from omnivinci_jax.models.initialization import abstract_params, parameter_roles, parameter_shapes
from omnivinci_jax.models.parameters import Role
from omnivinci_jax.models.quantized import GROUP_SIZE, Scheme

Method = Literal["rtn", "calibrated"]
_TOWERS = "(vision_tower|sound_tower)/layers/.*"
_ALL = "(vision_tower|sound_tower|llm)/layers/.*"
# Recipe: scheme of the kernels that a pattern matches.
RECIPES: dict[str, dict[str, Scheme]] = {
    "paper": {_TOWERS: "w8a8", "llm/.*": "w4a16"},
    "w4a16": {".*": "w4a16"},
    "w8a8": {".*": "w8a8"},
    "fp8": {".*": "fp8"},
}
_MODULES = {"paper": (_ALL,), "w4a16": ("llm/layers/.*",), "w8a8": (_ALL,), "fp8": (_ALL,)}


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model; config.json of the result records it.

    name: of RECIPES.
    method: `rtn` rounds to nearest; `calibrated` first rescales channels and clips (AWQ for w4a16, SmoothQuant for
        w8a8).
    modules: regular expressions over paths of dense layers ("llm/layers/mlp/up_proj"); one must match the whole path.
    group_size: inputs that share a scale in w4a16.
    """

    name: str
    method: Method = "rtn"
    modules: tuple[str, ...] = ()
    group_size: int = GROUP_SIZE

    def schemes(self, config: OmniVinciConfig) -> dict[str, Scheme]:
        """Returns the scheme of each kernel that is quantized, by path.

        Raises:
            UserError: an expression is invalid or matches no dense layer, or the group does not fit.
        """
        if self.group_size % 8:
            raise UserError(f"--group_size is {self.group_size}: must be a multiple of 8, the int4 values of an int32")
        kernels = _kernels(config)
        modules = [path.removesuffix("/kernel") for path in kernels]
        expressions = self.modules or _MODULES[self.name]
        for expression in expressions:
            if not _matches(expression, modules):
                raise UserError(f"--modules: {expression!r} matches no dense layer; paths look like {modules[-1]}")
        found: dict[str, Scheme] = {}
        for pattern, scheme in RECIPES[self.name].items():
            chosen = {path for expression in expressions for path in _matches(expression, modules)}
            found |= {f"{path}/kernel": scheme for path in _matches(pattern, modules) if path in chosen}
        if not found:
            raise UserError(f"--modules: recipe {self.name} quantizes none of these dense layers")
        for path, scheme in found.items():
            width = kernels[path][-2]
            if scheme == "w4a16" and width % self.group_size:
                raise UserError(
                    f"{path}: its width {width} is not a multiple of the group of {self.group_size}; choose "
                    "--group_size, or leave the module out with --modules"
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns the record in config.json."""
        return asdict(self) | {"modules": list(self.modules or _MODULES[self.name])}


def _kernels(config: OmniVinciConfig) -> dict[str, tuple[int, ...]]:
    params = abstract_params(config)
    roles = cast("dict[str, Role]", traverse_util.flatten_dict(parameter_roles(config, params), sep="/"))
    shapes = parameter_shapes(config)
    return {path: shapes[path] for path, role in roles.items() if role.adaptable}


def _matches(expression: str, modules: list[str]) -> list[str]:
    try:
        return [path for path in modules if re.fullmatch(expression, path)]
    except re.error as error:
        raise UserError(f"--modules: {expression!r} is not a regular expression: {error}") from None
