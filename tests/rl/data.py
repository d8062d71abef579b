"""Prompts for tests."""

import json
from pathlib import Path


def write_prompts(av_world: Path, path: Path) -> Path:
    """Writes four prompts: two about clips, one about a text, and one in the form of AVQA-R1."""
    clips = sorted((av_world / "clips").glob("train*"))[:2]

    def ask(*content: dict | str) -> list[dict]:
        items = [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]
        return [{"role": "user", "content": items}]

    clip = {"type": "video", "video": str(clips[0])}
    records = [
        {"messages": ask(clip, "Which?"), "answer": "B", "options": ["red", "blue"]},
        {"messages": ask("Which colour is rain?"), "answer": "red"},
        {"messages": [*ask("How many?"), {"role": "assistant", "content": "seven"}], "answer": "7"},
        {
            "problem": "What is it?", "problem_type": "multiple choice", "options": ["A. red", "B. blue"],
            "solution": "<answer>A</answer>", "data_type": "video", "path": str(clips[1]),
        },
    ]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
