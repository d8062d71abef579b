"""`omnivinci evaluate --metric ...`: generates answers to the questions of a file, and scores them."""

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from omnivinci_jax import strict_json
from omnivinci_jax.config_json import read_config
from omnivinci_jax.data.cascade import with_transcripts
from omnivinci_jax.data.records import Entry, Records
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.errors import ConfigError, UserError, describe_at
from omnivinci_jax.evaluation.answer_log import AnswerLog, answer_fields, check_failures, digest
from omnivinci_jax.evaluation.given_answers import read_answers
from omnivinci_jax.evaluation.metrics import make_metric
from omnivinci_jax.evaluation.samples import Sample, read_sample
from omnivinci_jax.evaluation.scores import describe_scores, judge_answers, write_scores
from omnivinci_jax.generate.assistant import Assistant, load
from omnivinci_jax.generate.command import use_program_cache
from omnivinci_jax.paths import atomic_file, is_remote
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.speech.http import ServerDown
from omnivinci_jax.speech.recognition import make_recogniser


def run(arguments: Namespace, mesh: Mesh | None) -> int:
    """Runs the command; the same command goes on after it was killed, and asks nothing twice."""
    if is_remote(arguments.out):
        raise ConfigError(f"--out {arguments.out}: answers are written one by one: give a file on a disk")
    if arguments.recogniser and arguments.drop == "sound":
        raise ConfigError("--recogniser hears the sound that --drop sound takes away: omit one of them")
    started, out = time.monotonic(), Path(arguments.out)
    metric = make_metric(arguments.metric, arguments.normalizer, arguments.bleu_tokenizer)
    records = open_records(arguments.data)
    entries = records.entries()
    samples, problems = _read_samples(records, entries, arguments.metric)
    check_failures(problems, len(entries), arguments.max_skipped, records.path)
    if arguments.answers:
        settings = {"data": str(arguments.data), "answers": str(arguments.answers)}
        answers, problems = read_answers(arguments.answers, samples, problems)
        check_failures(problems, len(entries), arguments.max_skipped, records.path)
    else:
        settings = {**_settings(arguments), "questions": digest(entry.data.strip() for entry in entries)}
        log = AnswerLog(out.with_suffix(".answers.jsonl"), settings)
        answers = log.answers
        asked = [(index, sample) for index, sample in enumerate(samples) if sample and index not in answers]
        if asked:
            answer = _choose_options if arguments.metric == "likelihood" else _generate
            given = answer(_load(arguments, mesh), [sample for _, sample in asked], arguments)
            problems |= log.collect(asked, given, problems, len(entries), arguments.max_skipped, records.path)
    scores = judge_answers(metric, samples, answers, problems)
    write_scores(out, arguments.metric, scores, settings, time.monotonic() - started)
    for keys, path in (
        (("answer_prediction",), arguments.mmar),
        (("model_prediction", "model_output"), arguments.mmau),  # of MMAU's description, and of its script
    ):
        if path:
            write_predictions(path, keys, samples, answers)
    print(describe_scores(arguments.metric, scores, settings))
    return 0


def model_settings(folder: epath.Path) -> dict[str, Any]:
    """Returns what tells a model from others, and from what stood in its folder before; raises UserError."""
    if not (folder / "params").exists():
        raise UserError(f"{folder}: has no params: give a model directory")
    return {"model": str(folder), "written": int((folder / "params").stat().mtime)}


def recogniser_settings(arguments: Namespace) -> dict[str, Any]:
    """Returns the settings of an external recogniser; none without one."""
    if not arguments.recogniser:
        return {}
    settings = {"recogniser": arguments.recogniser, "candidates": arguments.candidates}
    if arguments.recogniser != "pocketsphinx":
        settings["recogniser_model"] = arguments.recogniser_model
    return settings


def _read_samples(records: Records, entries: list[Entry], metric: str) -> tuple[list[Sample | None], dict[int, str]]:
    """Returns the questions, None for each that cannot be read or judged, and a line of why for these."""
    samples, problems = [], {}
    for index, entry in enumerate(entries):
        sample = None
        try:
            read = read_sample(records, entry)
            if metric in ("choice", "likelihood", "string_match"):
                _ = read.reference.right  # raises
            sample = read
        except Exception as error:  # whatever one line raises leaves the others alone
            problems[index] = describe_at(f"{records.path}:{entry.line}", error)
        samples.append(sample)
    return samples, problems


def _settings(arguments: Namespace) -> dict[str, Any]:
    """Returns what an answer depends on."""
    config = read_config(arguments.model / "config.json")
    return {
        **model_settings(arguments.model),
        "data": str(arguments.data),
        "frames": arguments.frames or config.num_video_frames,
        "fps": config.fps,
        "frame_sampling": config.frame_sampling,
        "prompt": arguments.prompt,
        "sound": "off" if arguments.drop == "sound" else "on",
        "vision": "off" if arguments.drop == "vision" else "on",
        "answer": "likeliest option" if arguments.metric == "likelihood" else "generated, greedy",
        "max_new_tokens": arguments.max_new_tokens,
        **recogniser_settings(arguments),
        "dtype": arguments.dtype,
    }


def _load(arguments: Namespace, mesh: Mesh | None) -> Assistant:
    use_program_cache()
    model = load(arguments.model, jnp.dtype(arguments.dtype), mesh)
    config = model.processor.config
    if arguments.frames:
        config = config.replace(num_video_frames=arguments.frames)
    return Assistant(model.model, model.params, replace(model.processor, drop=arguments.drop, config=config))


def _prompts(model: Assistant, samples: list[Sample], arguments: Namespace) -> Iterator[Conversation | Exception]:
    recogniser = make_recogniser(arguments.recogniser, arguments.recogniser_model) if arguments.recogniser else None
    for sample in samples:
        try:
            conversation = model.processor.select(sample.conversation)
            if recogniser:
                conversation = with_transcripts(conversation, recogniser, arguments.candidates)
            yield conversation.with_line(arguments.prompt)
        except ServerDown:
            raise
        except Exception as error:  # whatever one question raises leaves the others alone
            yield error


def _generate(model: Assistant, samples: list[Sample], arguments: Namespace) -> Iterator[dict[str, Any] | Exception]:
    prompts = _prompts(model, samples, arguments)
    for answer in model.generate_all(prompts, arguments.rows, max_new_tokens=arguments.max_new_tokens):
        yield answer if isinstance(answer, Exception) else answer_fields(answer)


def _choose_options(
    model: Assistant, samples: list[Sample], arguments: Namespace
) -> Iterator[dict[str, Any] | Exception]:
    """Takes the likeliest option as the answer: of their letters if the right answer is one, else of their texts."""
    for sample, prompt in zip(samples, _prompts(model, samples, arguments), strict=True):
        options = sample.reference.options
        if len(sample.reference.answers[0]) == 1:
            options = tuple(ascii_uppercase[: len(options)])
        try:
            if isinstance(prompt, Exception):
                raise prompt
            scores = model.score(prompt, options)
        except Exception as error:  # as above
            yield error
        else:
            yield {
                "answer": options[scores.index(max(scores))], "logprobs": dict(zip(options, scores, strict=True))
            }  # fmt: skip


def write_predictions(
    path: Path, keys: Sequence[str], samples: list[Sample | None], answers: dict[int, dict[str, Any]]
) -> None:
    """Writes the records of the data file as a JSON list, each with its answer under `keys`.

    MMAR's and MMAU's scorers leave out records without the key, as those that failed are.
    """
    found = [
        {**sample.record, **(dict.fromkeys(keys, answers[index]["answer"]) if index in answers else {})}
        for index, sample in enumerate(samples)
        if sample
    ]
    with atomic_file(path) as part:
        part.write_text(strict_json.dumps(found, indent=2) + "\n")
