"""CoVoST 2: the prompt of `omnivinci downstream`, and sacrebleu on the texts as they are."""

from functools import partial

import sacrebleu


def doc_to_visual(doc: dict) -> list:
    """Returns the sound."""
    return [doc["audio"]]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict) -> str:
    """Returns the prompt."""
    return lmms_eval_specific_kwargs["prompt"]


def process_results(doc: dict, results: list[str]) -> dict[str, tuple[str, str]]:
    """Returns the translation and the right one."""
    return {"bleu": (results[0], doc["translation"])}


def _bleu(results: list[tuple[str, str]], args: object = None, tokenizer: str = "13a") -> float:
    """Returns BLEU of the corpus."""
    said, right = zip(*results, strict=True)
    return sacrebleu.corpus_bleu(list(said), [list(right)], tokenize=tokenizer).score


bleu_13a, bleu_zh, bleu_char = (partial(_bleu, tokenizer=name) for name in ("13a", "zh", "char"))
