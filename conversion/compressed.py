"""Quantized kernels as compressed-tensors stores them, which vLLM, SGLang and transformers read.

    w4a16   weight_packed int32 [out, in / 8], eight int4 values plus 8, the first in the lowest bits (pack-quantized);
            weight_scale [out, groups]; weight_shape int64 [2]
    w8a8    weight int8 [out, in] (int-quantized); weight_scale [out, 1]
    fp8     weight float8_e4m3fn [out, in] (float-quantized); weight_scale [out, 1]

Our arrays have the same bytes, so both directions are exact.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from conversion.mapping import HEAD, LINEAR, SAME, Shape, Tensor, Transform
from conversion.tensor_files import QUANTIZED_DTYPES
from omnivinci_jax.errors import UserError
from omnivinci_jax.models.quantized import Scheme

FORMATS: dict[Scheme, str] = {"w4a16": "pack-quantized", "w8a8": "int-quantized", "fp8": "float-quantized"}
_INT32, _INT64 = QUANTIZED_DTYPES["I32"], QUANTIZED_DTYPES["I64"]
_VALUES = {"w4a16": np.dtype(np.uint8), "w8a8": QUANTIZED_DTYPES["I8"], "fp8": QUANTIZED_DTYPES["F8_E4M3"]}


def scheme_of(name: str, types: Mapping[str, np.dtype]) -> Scheme | None:
    """Returns the scheme of the tensor `name` ("….weight") from the types of a checkpoint's tensors; None: a float."""
    if f"{name}_packed" in types:
        return "w4a16"
    if f"{name}_scale" not in types or name not in types:
        return None
    return next((scheme for scheme in ("w8a8", "fp8") if _VALUES[scheme] == types[name]), None)


def quantized_tensors(tensor: Tensor, scheme: Scheme, groups: int) -> list[Tensor]:
    """Returns the tensors that store a quantized kernel, in place of its float tensor.

    The values' leaf is `<path>/values`, that of the scales `<path>/scales`; the weight's shape has none.

    Raises:
        UserError: the kernel is no linear layer in PyTorch.
    """
    if tensor.transform not in (LINEAR, HEAD):
        raise UserError(f"{tensor.path} is quantized, but no published linear layer; quantize without it")
    rows, width = tensor.shape
    # The vocabulary is padded with zeros, whose scale is 1.
    padded = tensor.transform is HEAD
    values = _layout(_VALUES[scheme], 0x88 if scheme == "w4a16" else 0, padded)
    scales = _layout(np.dtype(np.float32), 1, padded)
    suffix, shape, dtype = ("", (rows, width), _VALUES[scheme])
    if scheme == "w4a16":
        suffix, shape, dtype = "_packed", (rows, width // 8), _INT32
    found = [
        Tensor(f"{tensor.name}{suffix}", shape, f"{tensor.path}/values", tensor.index, values, dtype),
        Tensor(
            f"{tensor.name}_scale", (rows, groups), f"{tensor.path}/scales", tensor.index, scales, np.dtype(np.float32)
        ),
    ]
    if scheme == "w4a16":
        content = np.array([rows, width], _INT64)
        constant = Transform(SAME.to_tree, lambda _x, _shape: content, SAME.torch_shape)
        found.append(Tensor(f"{tensor.name}_shape", (2,), f"{tensor.path}/scales", tensor.index, constant, _INT64))
    return found


def leaf_shapes(shape: Shape, scheme: Scheme, groups: int) -> dict[str, tuple[Shape, np.dtype]]:
    """Returns shape and type of the leaves of a quantized kernel [..., in, out], by the end of their paths."""
    *stack, width, rows = shape
    values = (*stack, rows, width // 2 if scheme == "w4a16" else width)
    return {"values": (values, _VALUES[scheme]), "scales": ((*stack, rows, groups), np.dtype(np.float32))}


def _layout(dtype: np.dtype, fill: int, padded: bool) -> Transform:
    """Returns the layout of values or scales: the same bytes; `padded` for rows of the vocabulary."""

    def to_tree(x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x)
        x = x if x.dtype == dtype else x.view(dtype) if x.dtype == _INT32 else x.astype(dtype)
        if padded and len(x) % 128:
            x = np.concatenate([x, np.full((-len(x) % 128, x.shape[1]), fill).astype(dtype)])
        return x

    def to_torch(x: np.ndarray, shape: Shape) -> np.ndarray:
        x = np.ascontiguousarray(x[: shape[0]])
        return x if x.shape == shape else x.view(_INT32)

    return Transform(to_tree, to_torch, lambda shape, _: shape)


def quantization_config(schemes: Mapping[str, Scheme], group_size: int, names: Iterable[str]) -> dict[str, Any]:
    """Returns `quantization_config` of config.json.

    Args:
        schemes: of the quantized linear layers, by name.
        group_size: of w4a16.
        names: of all linear layers in the same file.
    """
    groups = {}
    for number, scheme in enumerate(sorted(set(schemes.values()), key=list(FORMATS).index)):
        layers = (name for name, own in schemes.items() if own == scheme)
        targets = sorted({"re:" + re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) + "$" for name in layers})
        groups[f"group_{number}"] = {"targets": targets, **_arguments(scheme, group_size), "format": FORMATS[scheme]}
    formats = [group["format"] for group in groups.values()]
    return {
        "quant_method": "compressed-tensors",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(name for name in names if name not in schemes),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _arguments(scheme: Scheme, group_size: int) -> dict[str, Any]:
    kind = dict(type="float" if scheme == "fp8" else "int", symmetric=True)
    if scheme == "w4a16":
        weights = dict(num_bits=4, **kind, strategy="group", group_size=group_size, dynamic=False)
        return {"weights": weights, "input_activations": None, "output_activations": None}
    weights = dict(num_bits=8, **kind, strategy="channel", dynamic=False)
    tokens = dict(num_bits=8, **kind, strategy="token", dynamic=True)
    return {"weights": weights, "input_activations": tokens, "output_activations": None}
