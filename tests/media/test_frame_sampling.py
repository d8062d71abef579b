import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from omnivinci_jax.media.frame_sampling import uniform_indices


def test_uniform_sampling_takes_the_centre_of_each_bin():
    times = np.arange(120) / 12
    assert uniform_indices(times, 10.0, 2, 100).tolist() == list(range(3, 120, 6))
    assert uniform_indices(times, 10.0, 2, 4).tolist() == [15, 45, 75, 105]
    assert uniform_indices(times[:1], 1 / 12, 2, 4).tolist() == [0]
    assert uniform_indices(times + 5.0, 15.0, 1, 100).tolist() == [0, *range(6, 120, 12)]


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=30, unique=True),
    st.floats(0.01, 10),
    st.floats(0.1, 30),
    st.integers(1, 64),
)
def test_sampled_frames_are_distinct_and_shown_at_bin_centres(times, last, fps, max_frames):
    times = np.sort(times)
    duration = times[-1] + last
    indices = uniform_indices(times, duration, fps, max_frames)
    count = min(max(int(duration * fps + 1e-3), 1), max_frames)
    assert 1 <= len(indices) <= count
    assert (np.diff(indices) > 0).all()
    for centre in (np.arange(count) + 0.5) * duration / count:
        on_screen = max(int((times <= centre + 1e-6).sum()) - 1, 0)
        assert on_screen in indices
