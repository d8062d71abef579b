"""Daily-Omni: the benchmark's own prompt. The letter is what lmms-eval extracts: the benchmark takes any first one."""

import os
from pathlib import Path

from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

_PROMPT = """
Your task is to accurately answer multiple-choice questions based on the given video.
Select the single most accurate answer from the given choices.
Question: {Question}
Choices: {Choice}
Your answer should be a capital letter representing your choice: A, B, C, or D. Don't generate any other text.
"""


def doc_to_visual(doc: dict) -> list[str]:
    """Returns the path of the video, which has the sound."""
    home = Path(os.getenv("HF_HOME", "~/.cache/huggingface")).expanduser()
    return [str(home / "daily_omni" / "Videos" / doc["video_id"] / f"{doc['video_id']}_video.mp4")]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """Returns the prompt."""
    return _PROMPT.format_map(doc)


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """Returns 1 for the right letter, also by the length of the video, which is 30s or 60s."""
    score = float(extract_mcq_answer(results[0], list("ABCD")) == doc["Answer"].strip())
    return {"accuracy": score, f"accuracy_{doc['video_duration']}": score}
