"""Transcripts as WebVTT, SubRip, JSON or plain text."""

from collections.abc import Sequence
from typing import NamedTuple

from omnivinci_jax import strict_json

FORMATS = {"text": ".txt", "vtt": ".vtt", "srt": ".srt", "json": ".json"}


class Segment(NamedTuple):
    """What is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def joined(segments: Sequence[Segment]) -> str:
    """Returns the whole text."""
    return " ".join(segment.text for segment in segments if segment.text)


def write_transcript(name: str, segments: Sequence[Segment], form: str) -> str:
    """Returns the transcript of the file `name` in one of FORMATS; subtitles leave out silent segments."""
    if form == "json":
        whole = {"file": name, "text": joined(segments), "segments": [segment._asdict() for segment in segments]}
        return strict_json.dumps(whole, indent=2) + "\n"
    if form == "text":
        return "".join(f"{segment.text}\n" for segment in segments if segment.text)
    cues = []
    for number, segment in enumerate((segment for segment in segments if segment.text), start=1):
        text = " ".join(segment.text.split())  # an empty line would end the cue
        if form == "vtt":
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            cues.append(f"{_time(segment.start, '.')} --> {_time(segment.end, '.')}\n{text}\n")
        else:
            cues.append(f"{number}\n{_time(segment.start, ',')} --> {_time(segment.end, ',')}\n{text}\n")
    return "\n".join(["WEBVTT\n", *cues] if form == "vtt" else cues)


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{mark}{milliseconds % 1000:03}"
