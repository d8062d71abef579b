import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnivinci_jax.sequence.grouping import temporal_groups


def test_cuts_match_the_released_code(golden):
    with np.load(golden / "cases" / "e_video_audio.npz") as case:
        (info,) = json.loads(bytes(case["in.video_info.json"]))[0]
    groups = temporal_groups(
        np.array(info["video_frame_times"]),
        seconds=info["video_duration"],
        num_vision_tokens=16,
        num_audio_tokens=50,
        mel_frames=info["audio_info"]["new_audio_n_stft_frames"],
        window_seconds=info["audio_info"]["new_audio_chunk_length"],
        group_seconds=10,
    )
    vision_ends = [math.ceil((frames[-1] + 1) * 16 / 8) for frames in info["segment_vis_indices_list"]]
    audio_ends = [math.ceil(end * 50 / 187) for _, end in info["segment_aud_indices_list"]]
    assert [vision.stop for vision, _ in groups] == vision_ends
    assert vision_ends == [6, 14, 16]  # pooled frames have 4 tokens, so two cuts fall inside a frame
    assert [audio.stop for _, audio in groups] == audio_ends


clips = st.fixed_dictionaries(
    dict(
        frames=st.integers(1, 40),
        seconds=st.floats(0.1, 120),
        tokens_per_frame=st.integers(1, 4),
        windows=st.integers(1, 4),
        group_seconds=st.one_of(st.none(), st.floats(0.3, 60)),
    )
)


@given(clips)
def test_groups_follow_time_and_drop_only_padding(clip):
    times = (np.arange(clip["frames"]) + 0.5) * clip["seconds"] / clip["frames"]
    vision_tokens, audio_tokens = clip["frames"] * clip["tokens_per_frame"], clip["windows"] * 30
    window_seconds = clip["seconds"] * 1.25
    groups = temporal_groups(
        times,
        seconds=clip["seconds"],
        num_vision_tokens=vision_tokens,
        num_audio_tokens=audio_tokens,
        mel_frames=clip["windows"] * 240,
        window_seconds=window_seconds,
        group_seconds=clip["group_seconds"],
    )
    assert [i for vision, _ in groups for i in vision] == list(range(vision_tokens))
    heard = [i for _, audio in groups for i in audio]
    assert heard == list(range(len(heard)))
    # Audio tokens reach the clip's end, up to rounding to a mel frame and up to a token.
    token_seconds = window_seconds / audio_tokens
    assert len(heard) * token_seconds == pytest.approx(clip["seconds"], abs=1.2 * token_seconds)
    if clip["group_seconds"]:
        for number, (vision, _) in enumerate(groups[:-1]):
            start, end = number * clip["group_seconds"], (number + 1) * clip["group_seconds"]
            assert all(start <= times[token // clip["tokens_per_frame"]] < end for token in vision)
    else:
        assert len(groups) == 1
