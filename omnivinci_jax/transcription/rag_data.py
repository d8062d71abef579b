"""`omnivinci rag-data`: conversations that teach a model when a recogniser's texts correct its own (D.3.2)."""

import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from tqdm import tqdm

from omnivinci_jax import strict_json
from omnivinci_jax.errors import DataError, describe_at
from omnivinci_jax.evaluation.answer_log import check_failures
from omnivinci_jax.evaluation.metrics import make_metric
from omnivinci_jax.paths import atomic_file
from omnivinci_jax.sequence.chat import TRANSCRIBE, Conversation, Message
from omnivinci_jax.transcription.command import make_transcriber
from omnivinci_jax.transcription.correction import Hypotheses, ask_correction, decide
from omnivinci_jax.transcription.layouts import Utterance, read_utterances


def run(arguments: Namespace, mesh: Mesh | None) -> int:
    """Runs the command; returns 0.

    Raises:
        DataError: more sounds than --max_skipped allows cannot be used.
    """
    utterances, wer = read_utterances(arguments.data), make_metric("wer", arguments.normalizer)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.rag, arguments.window_seconds = False, 0.0
    transcriber = make_transcriber(arguments, mesh)
    assert transcriber.model
    questions = (Conversation((Message("user", (item.item, TRANSCRIBE)),), item.where) for item in utterances)
    found = transcriber.hypotheses(transcriber.model, questions)
    rows, problems = [], {}
    bar = tqdm(utterances, f"rag-data {arguments.data.name}", unit=" sounds", leave=False)
    for index, (utterance, heard) in enumerate(zip(bar, found, strict=True)):
        try:
            if isinstance(heard, Exception):
                raise heard
            rows.append(_row(utterance, heard, decide(wer, heard, utterance.reference or "", arguments.threshold)))
        except Exception as error:  # whatever one sound raises leaves the others alone
            problems[index] = describe_at(utterance.where, error)
            check_failures(problems, len(utterances), arguments.max_skipped, arguments.data)
    if not rows:
        raise DataError(f"{arguments.data}: no sound could be used: {problems[0]}")
    with atomic_file(arguments.out) as part:
        part.write_text("".join(strict_json.dumps(row) + "\n" for row in rows))
    for problem in problems.values():
        print(f"skipped: {problem}", file=sys.stderr)
    counts = Counter(row["decision"] for row in rows)
    print(f"{arguments.out}: " + ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items())))
    return 0


def _row(utterance: Utterance, heard: Hypotheses, decision: str) -> dict[str, Any]:
    before, _, after = ask_correction(*heard).messages[0].content
    sound = {"type": "audio", "audio": str(Path(heard.item.path).absolute())}
    content = [{"type": "text", "text": before}, sound, {"type": "text", "text": after}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": f"{decision}{utterance.reference}"},
    ]
    return {
        "id": utterance.name, "messages": messages, "kind": decision.strip("<>"), "decision": decision,
        "internal": heard.internal, "candidates": heard.candidates,
    }  # fmt: skip
