"""MMAU v05.15.25. lmms-eval's own task reads an older copy, and letters up to D alone."""

import json
from string import ascii_uppercase

from lmms_eval.tasks._task_utils.file_utils import generate_submission_file
from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
from loguru import logger


def doc_to_visual(doc: dict) -> list:
    """Returns the sound."""
    return [doc["context"]]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict) -> str:
    """Returns the question and its choices, a line each."""
    return "\n".join([doc["instruction"], *doc["choices"]]) + lmms_eval_specific_kwargs["post_prompt"]


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """Returns 1 for the right choice, also by task: sound, music or speech."""
    score = float(_choice(doc, results[0]) == doc["answer"])
    return {"accuracy": score, json.loads(doc["other_attributes"])["task"]: score}


def process_submission(doc: dict, results: list[str]) -> dict[str, dict]:
    """Returns the record that MMAU's scorer reads, with the choice, or the answer if it names none."""
    attributes = json.loads(doc["other_attributes"])
    said = _choice(doc, results[0]) or results[0]
    record = {"question": doc["instruction"], "choices": doc["choices"], "model_prediction": said}
    return {"submission": {**attributes, **record}}


def write_submission(results: list[dict], args: object) -> None:
    """Writes the records as a JSON list."""
    path = generate_submission_file("mmau_v051525_test.json", args)
    with open(path, "w") as file:
        json.dump(results, file, indent=2)
    logger.warning(f"for MMAU's scorer: {path}")


def _choice(doc: dict, answer: str) -> str | None:
    letters = list(ascii_uppercase[: len(doc["choices"])])
    letter = extract_mcq_answer(answer, letters)
    return doc["choices"][letters.index(letter)] if letter else None
