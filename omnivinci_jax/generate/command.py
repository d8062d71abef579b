"""`omnivinci generate`: one question from the command line, or many from a file."""

import os
import re
import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from omnivinci_jax import strict_json
from omnivinci_jax.data.records import Entry, Jsonl, check_skipped
from omnivinci_jax.errors import ConfigError, UserError, describe_at
from omnivinci_jax.generate.answers import Answer
from omnivinci_jax.generate.assistant import Assistant, load
from omnivinci_jax.generate.request import Sampling
from omnivinci_jax.media.container import check_file
from omnivinci_jax.sequence.chat import Conversation, Media, Message, valid_text
from omnivinci_jax.sequence.forms import parse_conversation
from omnivinci_jax.sequence.references import media_file
from omnivinci_jax.speech import Voice, read_aloud, voice_or_server

_PLACEHOLDER = re.compile(r"<(?:image|video|audio|sound)>")


def run(arguments: Namespace, mesh: Mesh | None) -> int:
    """Runs the command. Checks the arguments before it loads the model."""
    sampling, voice = vars(parse_sampling(arguments)), parse_voice(arguments)
    if arguments.data:
        if any((arguments.prompt, arguments.media, arguments.speech_prompt, arguments.system, arguments.samples > 1)):
            raise ConfigError(
                "--data answers each of its conversations once: omit --prompt, media, --speech_prompt, --system and "
                "--samples"
            )
        return _answer_file(arguments, sampling, mesh)
    question = parse_question(arguments)
    model = load_for_command(arguments, mesh)
    if arguments.samples > 1 or arguments.json:
        answers = model.sample(question, arguments.samples, **sampling)
        lines = (
            strict_json.dumps(answer_record(answer)) if arguments.json else f"{answer.text}\n" for answer in answers
        )
        print("\n".join(lines))
    else:
        answers = [stream_answer(model, question, sampling, voice, arguments.speak)]
        if not answers[0].finish:
            raise KeyboardInterrupt
    print(describe_speed(answers[0]), file=sys.stderr)
    return 0


def parse_sampling(arguments: Namespace) -> Sampling:
    """Builds a Sampling from the flags that `generate` and `chat` share. Raises ConfigError."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "max_new_tokens")
    return Sampling(stop=tuple(arguments.stop), **{name: getattr(arguments, name) for name in names})


def parse_voice(arguments: Namespace) -> Voice | None:
    """Returns the voice for --speak, or None without it. Raises UserError."""
    if not arguments.speak:
        return None
    if arguments.json or arguments.samples > 1 or arguments.data:
        raise ConfigError("--speak reads one answer aloud as it comes: omit --json, --samples and --data")
    if arguments.speak.exists():
        raise UserError(f"{arguments.speak}: already exists; nothing was overwritten")
    if not arguments.speak.absolute().parent.is_dir():
        raise UserError(f"{arguments.speak}: its folder does not exist")
    return voice_or_server(arguments.voice, arguments.speech_server, arguments.speech_model)


def load_for_command(arguments: Namespace, mesh: Mesh | None) -> Assistant:
    """Loads the model, with a persistent compilation cache."""
    use_program_cache()
    model = load(arguments.model, jnp.dtype(arguments.dtype), mesh)
    model.engine  # noqa: B018 (created now, so that the first answer does not wait for it)
    return model


def use_program_cache() -> None:
    """Keeps compiled programs on disk, so that only the first command waits for the compiler."""
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home, "omnivinci_jax", "programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def parse_question(arguments: Namespace) -> Conversation:
    """Returns the media, prompt and system prompt of the flags as a conversation.

    The prompt is the text and the speech. Media go where the text has placeholders, or else around the prompt by
    `prompt_position`: all before it (suffix), all after it (prefix), or half of them before it, rounded down (mid). Of
    three media, mid puts one before the prompt and two after, as the paper does.

    Raises:
        UserError: nothing to answer, missing files, placeholders and media that do not match.
    """
    media = tuple(
        replace(
            media_file(kind, path, f"--{kind.replace('sound', 'audio')}", Path()), track=arguments.audio_tracks.get(n)
        )
        for n, (kind, path) in enumerate(arguments.media)
    )
    speech = tuple(media_file("sound", path, "--speech_prompt", Path()) for path in arguments.speech_prompt)
    for item in (*media, *speech):
        if not item.stored:
            check_file(item.path)
    if not (arguments.prompt or media or speech):
        raise UserError("give something to answer: --prompt TEXT, --speech_prompt FILE, or media")
    if media and _PLACEHOLDER.search(arguments.prompt):
        content = (*_fill_placeholders(arguments), *speech)
    else:
        text = (valid_text(arguments.prompt),) if arguments.prompt else ()
        before = {"prefix": 0, "mid": len(media) // 2, "suffix": len(media)}[arguments.prompt_position]
        if arguments.prompt_position == "mid" and len(media) < 2:
            raise ConfigError(f"--prompt_position mid goes between media: give two or more, not {len(media)}")
        content = (*media[:before], *speech, *text, *media[before:])
    return Conversation((*system_message(arguments), Message("user", content)))


def system_message(arguments: Namespace) -> tuple[Message, ...]:
    """Returns the system message of --system, if given."""
    return (Message("system", (valid_text(arguments.system),)),) if arguments.system else ()


def _fill_placeholders(arguments: Namespace) -> tuple[str | Media, ...]:
    files = {"image": [], "video": [], "sound": []}
    for n, (kind, path) in enumerate(arguments.media):
        files[kind].append({"path": path, "track": arguments.audio_tracks.get(n)})
    record = {"conversations": [{"from": "human", "value": arguments.prompt}], **files}
    return parse_conversation(record, "--prompt", Path()).messages[0].content


def stream_answer(
    model: Assistant, question: Conversation, sampling: dict, voice: Voice | None = None, sound: Path | None = None
) -> Answer:
    """Streams an answer to standard output; with a voice, also reads it aloud into the file `sound`.

    After Ctrl-C, the incomplete answer is still printed, spoken and returned.
    """
    stream = model.stream(question, **sampling)
    pieces = (piece.text for piece in stream)
    try:
        with closing(read_aloud(voice, pieces, sound) if voice and sound else pieces) as spoken:
            for text in spoken:
                print(text, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print(flush=True)
    return stream.answers[0]


def describe_speed(answer: Answer) -> str:
    """Formats the time an answer took in one line, without a rate if it is a single token."""
    rate = f", then {answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second > 0 else ""
    return f"first token after {answer.first_token_seconds:.2f} s ({answer.prompt_tokens} positions of prompt){rate}"


def answer_record(answer: Answer) -> dict:
    """Returns an answer as a JSON object."""
    return {
        "text": answer.text,
        "finish": answer.finish,
        "tokens": len(answer.tokens),
        "prompt_tokens": answer.prompt_tokens,
        "first_token_seconds": round(answer.first_token_seconds, 4),
        "tokens_per_second": round(answer.tokens_per_second, 2),
    }


def _answer_file(arguments: Namespace, sampling: dict, mesh: Mesh | None) -> int:
    """Prints a JSON line for each conversation of a file; returns 1 if some could not be answered.

    Raises:
        DataError: more than --max_skipped of them could not; the answers so far are printed.
    """
    records = Jsonl(arguments.data)
    entries = records.entries()
    model, problems = load_for_command(arguments, mesh), []
    asked = (_question(records, entry) for entry in entries)
    for entry, answer in zip(entries, model.generate_all(asked, arguments.rows, **sampling), strict=True):
        if isinstance(answer, Exception):
            problems.append(describe_at(f"{records.path}:{entry.line}", answer))
        record = {"error": problems[-1]} if isinstance(answer, Exception) else answer_record(answer)
        print(strict_json.dumps(record), flush=True)
        check_skipped(problems, len(entries), arguments.max_skipped, records.path)
    if problems:
        print(f"omnivinci generate: {len(problems)} of {len(entries)} could not be answered", file=sys.stderr)
    return int(bool(problems))


def _question(records: Jsonl, entry: Entry) -> Conversation | Exception:
    """Returns the conversation of a line without its last answer, or what reading it raised."""
    try:
        return records.conversation(entry).unanswered
    except Exception as error:  # whatever one line raises leaves the others alone
        return error
