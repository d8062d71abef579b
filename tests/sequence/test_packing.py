import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.packing import RowSize, fits, pack

capacities = st.builds(
    Capacity,
    rows=st.integers(1, 5),
    slots=st.integers(5, 60),
    tiles=st.integers(1, 30),
    windows=st.integers(1, 10),
    clips=st.integers(1, 6),
)


@st.composite
def packings(draw):
    capacity = draw(capacities)
    size = st.tuples(st.integers(1, capacity.slots), *(st.integers(0, room) for room in capacity[2:]))
    return np.array(draw(st.lists(size, max_size=60)), np.int64).reshape(-1, 4), capacity


@given(packings())
@settings(max_examples=200)
def test_every_sample_is_packed_once_and_no_group_overflows(packing):
    sizes, capacity = packing
    groups = pack(sizes, capacity)
    assert sorted(sample for group in groups for row in group for sample in row) == list(range(len(sizes)))
    for group in groups:
        assert len(group) == capacity.rows
        assert all(sizes[row, 0].sum() <= capacity.slots for row in group)
        used = sizes[[sample for row in group for sample in row], 1:].sum(axis=0)
        assert (used <= capacity[2:]).all() and any(group)


def test_mixed_lengths_fill_rows_well():
    random = np.random.default_rng(0)
    slots = random.integers(20, 400, 2000)
    sizes = np.stack([slots, slots // 20, slots // 100, slots * 0 + 1], axis=1)
    capacity = Capacity(rows=4, slots=1024, tiles=205, windows=41, clips=400)
    groups = pack(sizes, capacity)
    assert slots.sum() / (len(groups) * capacity.rows * capacity.slots) > 0.95


def test_fits_checks_every_part_of_the_capacity():
    capacity = Capacity(rows=1, slots=10, tiles=4, windows=2, clips=1)
    assert fits(RowSize(10, 4, 2, 1), capacity)
    for part in range(4):
        size = [10, 4, 2, 1]
        size[part] += 1
        assert not fits(RowSize(*size), capacity)
