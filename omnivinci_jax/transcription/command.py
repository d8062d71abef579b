"""`omnivinci transcribe`: transcripts of files and folders, and the word error rate of a corpus."""

import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from omnivinci_jax.data.cascade import recognise, with_transcripts
from omnivinci_jax.errors import ConfigError, UserError, describe_at, printable
from omnivinci_jax.evaluation.answer_log import AnswerLog, check_failures, digest
from omnivinci_jax.evaluation.command import model_settings, recogniser_settings
from omnivinci_jax.evaluation.metrics import Reference, make_metric
from omnivinci_jax.evaluation.samples import Sample
from omnivinci_jax.evaluation.scores import describe_scores, judge_answers, write_scores
from omnivinci_jax.generate.answers import Answer
from omnivinci_jax.generate.assistant import Assistant, load
from omnivinci_jax.generate.command import use_program_cache
from omnivinci_jax.paths import atomic_file
from omnivinci_jax.sequence.chat import TRANSCRIBE, Conversation, Media, Message, valid_text
from omnivinci_jax.speech.http import ServerDown
from omnivinci_jax.speech.recognition import RATE, Recogniser, make_recogniser
from omnivinci_jax.transcription.correction import CANDIDATES, Hypotheses, ask_correction, choose_text
from omnivinci_jax.transcription.layouts import Utterance, read_utterances
from omnivinci_jax.transcription.subtitles import FORMATS, Segment, joined, write_transcript
from omnivinci_jax.transcription.windows import Window, cut_sound


class Transcriber:
    """Transcribes sounds with a model, with an external recogniser, or with both: the cascade of Appendix D.3."""

    def __init__(self, model: Assistant | None, recogniser: Recogniser | None, arguments: Namespace):
        """`arguments` are those of `transcription/flags.py`."""
        self.model, self._recogniser, self._arguments = model, recogniser, arguments

    def transcribe(self, items: Iterable[Media]) -> Iterator[list[Segment] | Exception]:
        """Yields the segments of each sound, or what it raised; windows of several sounds are decoded together.

        Raises:
            ServerDown: the recogniser's server does not answer.
        """
        windows: deque[tuple[Window | None, bool]] = deque()  # that are being decoded; whether it is its sound's last

        def questions() -> Iterator[Conversation | Exception]:
            for item in items:
                try:
                    cut = cut_sound(item, RATE, self._arguments.window_seconds)
                except Exception as error:  # whatever one sound raises leaves the others alone
                    windows.append((None, True))
                    yield error
                    continue
                for window in cut:
                    windows.append((window, window is cut[-1]))
                    yield self._question(window)

        segments: list[Segment] = []
        failed: Exception | None = None
        for text in self._texts(questions()):
            window, is_last = windows.popleft()
            if isinstance(text, Exception):
                failed = failed or text
            elif window:
                segments.append(Segment(window.start, window.end, text.strip()))
            if is_last:
                yield failed or segments
                segments, failed = [], None

    def _question(self, window: Window) -> Conversation | Exception:
        prompt = valid_text(self._arguments.prompt or TRANSCRIBE)
        question = Conversation((Message("user", (window.item, prompt)),))
        if not (self.model and self._recogniser) or self._arguments.rag:
            return question
        try:
            return with_transcripts(question, self._recogniser, self._arguments.candidates)
        except ServerDown:
            raise
        except Exception as error:  # as above
            return error

    def _texts(self, questions: Iterator[Conversation | Exception]) -> Iterator[str | Exception]:
        if self.model and self._arguments.rag:
            yield from self._corrected(self.model, questions)
            return
        if self.model:
            answers = self._answers(self.model, questions)
            yield from (answer if isinstance(answer, Exception) else answer.text for answer in answers)
            return
        assert self._recogniser
        for question in questions:
            try:
                if isinstance(question, Exception):
                    raise question
                yield recognise(question.media[0], self._recogniser)[0]
            except ServerDown:
                raise
            except Exception as error:  # as above
                yield error

    def _answers(self, model: Assistant, questions: Iterator[Conversation | Exception]) -> Iterator[Answer | Exception]:
        return model.generate_all(questions, self._arguments.rows, max_new_tokens=self._arguments.max_new_tokens)

    def hypotheses(
        self, model: Assistant, questions: Iterator[Conversation | Exception]
    ) -> Iterator[Hypotheses | Exception]:
        """Yields what the model hears in each sound, and what the recogniser does; or what a sound raised."""
        assert self._recogniser
        asked: deque[Conversation | Exception] = deque()

        def kept() -> Iterator[Conversation | Exception]:
            for question in questions:
                asked.append(question)
                yield question

        for answer in self._answers(model, kept()):
            question = asked.popleft()
            if isinstance(answer, Exception):
                yield answer
                continue
            assert isinstance(question, Conversation)
            item = question.media[0]
            try:
                candidates = recognise(item, self._recogniser, CANDIDATES)
            except ServerDown:
                raise
            except Exception as error:  # as above
                yield error
            else:
                yield Hypotheses(item, answer.text.strip(), candidates)

    def _corrected(self, model: Assistant, questions: Iterator[Conversation | Exception]) -> Iterator[str | Exception]:
        """Yields corrected texts: `generate_all` takes a batch of questions before it answers, so its uses may nest."""
        found: deque[Hypotheses | Exception] = deque()

        def corrections() -> Iterator[Conversation | Exception]:
            for heard in self.hypotheses(model, questions):
                found.append(heard)
                yield heard if isinstance(heard, Exception) else ask_correction(*heard)

        for answer in self._answers(model, corrections()):
            heard = found.popleft()
            if isinstance(answer, Exception):
                yield answer
                continue
            assert isinstance(heard, Hypotheses)
            try:
                yield choose_text(answer, heard.internal, model.processor.tokenizer)
            except UserError as error:
                yield error


def run(arguments: Namespace, mesh: Mesh | None) -> int:
    """Runs the command; the same command goes on after it was killed. Returns 1 if some files failed."""
    if not (arguments.model or arguments.recogniser):
        raise ConfigError("give --model DIR, --recogniser NAME, or both")
    if arguments.rag and not (arguments.model and arguments.recogniser):
        raise ConfigError("--rag corrects a model's texts by a recogniser's: give --model DIR and --recogniser NAME")
    for name in ("window_seconds", "rows", "candidates", "max_new_tokens"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: it must be above 0")
    utterances = read_utterances(arguments.data)
    if arguments.wer:
        return _measure(arguments, mesh, utterances)
    if len(utterances) > 1 and not arguments.out:
        raise ConfigError(f"{arguments.data}: has {len(utterances)} sounds: give --out FOLDER for their transcripts")
    if arguments.out is None:
        targets: list[Path | None] = [None]
    else:
        targets = [arguments.out / f"{utterance.name}{FORMATS[arguments.format]}" for utterance in utterances]
    waiting = [
        (utterance, target)
        for utterance, target in zip(utterances, targets, strict=True)
        if target is None or not target.exists()
    ]
    if not waiting:
        return 0
    failures = 0
    found = make_transcriber(arguments, mesh).transcribe(utterance.item for utterance, _ in waiting)
    bar = tqdm(waiting, "transcribe", len(targets), initial=len(targets) - len(waiting), unit=" files", leave=False)
    for (utterance, target), segments in zip(bar, found, strict=True):
        if isinstance(segments, Exception):
            failures += 1
            bar.clear()
            print(f"omnivinci transcribe: {describe_at(utterance.where, segments)}", file=sys.stderr)
            continue
        text = write_transcript(printable(utterance.item.path), segments, arguments.format)
        if target is None:
            print(text, end="")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as part:
            part.write_text(text)
    return int(bool(failures))


def make_transcriber(arguments: Namespace, mesh: Mesh | None) -> Transcriber:
    """Loads the model and the recogniser that the flags name."""
    recogniser = None
    if arguments.recogniser:
        recogniser = make_recogniser(arguments.recogniser, arguments.recogniser_model)
    if not arguments.model:
        return Transcriber(None, recogniser, arguments)
    use_program_cache()
    model = load(arguments.model, jnp.dtype(arguments.dtype), mesh)
    longest = model.model.config.max_sound_seconds
    if arguments.window_seconds > longest:
        raise ConfigError(f"--window_seconds is {arguments.window_seconds}: this model hears at most {longest} s")
    return Transcriber(model, recogniser, arguments)


def _measure(arguments: Namespace, mesh: Mesh | None, utterances: Sequence[Utterance]) -> int:
    """Measures the word error rate of a corpus."""
    started, metric = time.monotonic(), make_metric("wer", arguments.normalizer)
    samples: list[Sample | None] = []
    problems: dict[int, str] = {}
    for index, utterance in enumerate(utterances):
        if utterance.reference is None or not utterance.reference.strip():
            problems[index] = f"{utterance.where}: has no reference text, or an empty one"
            samples.append(None)
            continue
        asked = Conversation((Message("user", (utterance.item,)),), utterance.where)
        reference = Reference((utterance.reference,))
        samples.append(Sample(asked, reference, {"id": utterance.name}, "all", utterance.where))
    check_failures(problems, len(utterances), arguments.max_skipped, arguments.data)
    arguments.wer.parent.mkdir(parents=True, exist_ok=True)
    settings = _settings(arguments, utterances)
    log = AnswerLog(arguments.wer.with_suffix(".answers.jsonl"), settings)
    waiting = [(index, sample) for index, sample in enumerate(samples) if sample and index not in log.answers]
    if waiting:
        found = make_transcriber(arguments, mesh).transcribe(sample.conversation.media[0] for _, sample in waiting)
        answers = (
            item if isinstance(item, Exception) else {"answer": joined(item), "seconds": item[-1].end} for item in found
        )
        problems = log.collect(waiting, answers, problems, len(samples), arguments.max_skipped, arguments.data)
    scores = judge_answers(metric, samples, log.answers, problems)
    write_scores(arguments.wer, "wer", scores, settings, time.monotonic() - started)
    print(describe_scores("wer", scores, settings))
    return 0


def _settings(arguments: Namespace, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """Returns what a transcript depends on."""
    settings: dict[str, Any] = {"data": str(arguments.data), "window_seconds": arguments.window_seconds}
    if arguments.model:
        settings |= {
            **model_settings(arguments.model),
            "prompt": arguments.prompt or TRANSCRIBE,
            "max_new_tokens": arguments.max_new_tokens,
            "dtype": arguments.dtype,
            **({"rag": True} if arguments.rag else {}),
        }
    asked = digest(f"{item.name}\t{item.reference}".encode() for item in utterances)
    return {**settings, **recogniser_settings(arguments), "questions": asked}
