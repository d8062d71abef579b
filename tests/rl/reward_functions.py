"""Own reward functions, which worker processes import."""

import os
import time


def length(prompt: str, answer: str, record: dict) -> float:
    return len(answer) + record["bonus"]


def is_nan(prompt: str, answer: str, record: dict) -> float:
    return float("nan") if "bad" in answer else 0.5


def raises(prompt: str, answer: str, record: dict) -> float:
    return {}[answer]


def text(prompt: str, answer: str, record: dict) -> str:
    return "good"


def hangs(prompt: str, answer: str, record: dict) -> float:
    if answer == "bad":
        time.sleep(60)
    return 1


def exits(prompt: str, answer: str, record: dict) -> float:
    os._exit(3)
