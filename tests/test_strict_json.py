import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnivinci_jax import strict_json
from omnivinci_jax.errors import UserError

VALUES = st.recursive(st.none() | st.floats() | st.text(max_size=3), lambda inner: st.lists(inner) | st.dictionaries(
    st.text(max_size=3), inner
), max_leaves=8)  # fmt: skip


def refuse(constant: str):
    raise AssertionError(f"{constant} is not JSON")


@given(VALUES)
def test_it_has_no_nan(value):
    json.loads(strict_json.dumps(value), parse_constant=refuse)


def test_only_numbers_that_are_not_finite_change():
    value = {"a": [1.5, float("nan"), (2, float("-inf"))], "b": {"c": np.float64("nan"), "d": "NaN", "e": None}}
    assert strict_json.dumps(value) == '{"a": [1.5, null, [2, null]], "b": {"c": null, "d": "NaN", "e": null}}'


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe{"])
def test_a_file_cut_short_is_one_error(content, tmp_path):
    (tmp_path / "shards.json").write_bytes(content)
    with pytest.raises(UserError, match=r"shards\.json: cut short or damaged: not JSON") as error:
        strict_json.read(tmp_path / "shards.json")
    assert "\n" not in str(error.value)
