"""Writes the rows as conversations that training, GRPO and shards read, and counts them by stage."""

import heapq
import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from omnivinci_jax.data_engine.engine import VERSION
from omnivinci_jax.data_engine.prompts import Prompt
from omnivinci_jax.data_engine.quality import NearDuplicates
from omnivinci_jax.data_engine.settings import EngineConfig
from omnivinci_jax.data_engine.stages import Row, prompt_of
from omnivinci_jax.data_engine.store import digest
from omnivinci_jax.paths import atomic_file, remove_unfinished

FILES = ("captions", "questions", "dropped", "errors")


@dataclass
class Counts:
    """What happened to the rows. `stages` counts what reached each stage; the others, by reason, kind or letter."""

    stages: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    again: int = 0
    dropped_captions: Counter = field(default_factory=Counter)
    dropped_questions: Counter = field(default_factory=Counter)
    needs: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    letters: Counter = field(default_factory=Counter)


class Output:
    """The files of a run, in the order of the rows. They appear when the block ends, but not if it raises."""

    def __init__(self, out: Path, config: EngineConfig, prompts: dict[str, Prompt]):
        self.counts = Counts()
        self._out, self._config = out.absolute(), config
        self._describe = prompts["describe"].text.splitlines()
        self._duplicates = NearDuplicates(config.quality.same_caption)
        self._examples: list[tuple[bytes, int, Row]] = []
        self._provenance = {
            "engine": VERSION,
            "models": {role: model.model for role, model in config.models.items()},
            "prompts": {name: f"{prompt.version} {prompt.sha256[:12]}" for name, prompt in prompts.items()},
        }
        self._files: dict[str, TextIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Output":
        remove_unfinished(self._out)
        for name in FILES:
            part = self._stack.enter_context(atomic_file(self._out / f"{name}.jsonl"))
            # The backslash form of half a surrogate pair, as in a path that is not UTF-8, is JSON's, too.
            self._files[name] = self._stack.enter_context(open(part, "w", encoding="utf-8", errors="backslashreplace"))
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def examples(self) -> list[Row]:
        """Returns the segments to show: a sample that does not depend on their order."""
        return [row for _, _, row in sorted(self._examples, reverse=True)]

    def add(self, row: Row) -> None:
        """Writes a row."""
        counts = self.counts
        # "video" would be one more video of the conversation.
        place = {"id": row["id"], "source": row["video"]} | {
            name: row[name] for name in ("start", "end") if name in row
        }
        for name, reached in (("segments", "file"), ("captioned", "audio"), ("corrected", "caption")):
            counts.stages[name] += reached in row
        if "error" in row:
            counts.errors[row["error"]["stage"]] += 1
            counts.again += row["error"]["again"]
            self._write("errors", place | {"stage": row["error"]["stage"], "reason": row["error"]["reason"]})
            return
        reason = row.get("drop") or self._repeated(row)
        if reason:
            counts.dropped_captions[reason.partition(":")[0]] += 1
            self._write("dropped", place | {"reason": reason})
        else:
            self._add_conversations(row, place)
        self._keep_example(row | ({"drop": reason} if reason else {}))

    def _repeated(self, row: Row) -> str | None:
        other = self._duplicates.add(row["id"], row["caption"])
        return other and f"near-duplicate: {other}"

    def _add_conversations(self, row: Row, place: Row) -> None:
        file = os.path.relpath(row["file"], self._out)
        video = {"type": "video", "video": file}
        about = place | {"provenance": self._provenance | {"sha256": row["sha256"]}}
        asked = self._describe[int.from_bytes(digest("describe", row["id"])[:4], "big") % len(self._describe)]
        self._write("captions", _conversation([video, _text(asked)], row["caption"]) | {"kind": "caption"} | about)
        self.counts.stages["captions kept"] += 1
        for index, question in enumerate(row["questions"]):
            self.counts.stages["questions asked"] += 1
            number = {"id": f"{row['id']}-{index}"}
            if reason := question.get("drop"):
                self.counts.dropped_questions[reason] += 1
                self._write("dropped", place | number | {"reason": reason, "question": prompt_of(question)})
                continue
            self.counts.stages["questions kept"] += 1
            self.counts.kinds[question["kind"]] += 1
            answer, speech = question["answer"], question.get("speech")
            prompt = {"type": "audio", "audio": speech} if speech else _text(prompt_of(question))
            if self._config.answers == "reasoning":
                answer = f"<think>{question['reasoning']}</think><answer>{answer}</answer>"
            record = _conversation([video, prompt], answer) | {"answer": question["answer"]}
            if question["options"]:
                self.counts.letters[question["answer"]] += 1
                record["options"] = question["options"]
            if needs := question.get("needs"):
                self.counts.needs[needs] += 1
                record["needs"] = needs
            self._write("questions", record | {"kind": question["kind"]} | about | number)

    def _keep_example(self, row: Row) -> None:
        # The largest stays at the front and leaves first; so the smallest hashes remain.
        rank = bytes(255 - byte for byte in digest("example", row["id"], row["video"]))
        heapq.heappush(self._examples, (rank, len(self._examples), row))
        if len(self._examples) > self._config.examples:
            heapq.heappop(self._examples)

    def _write(self, name: str, record: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(record, ensure_ascii=False) + "\n")


def _conversation(content: list[dict], answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
