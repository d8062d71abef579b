"""What a run costs: the tokens that were used, and those that the videos of a folder would take."""

import math
from collections import Counter
from pathlib import Path

from omnivinci_jax.data_engine.clips import segment_spans, source_identity
from omnivinci_jax.data_engine.engine import Engine, find_videos
from omnivinci_jax.data_engine.settings import EngineConfig
from omnivinci_jax.data_engine.store import Total
from omnivinci_jax.errors import UserError

_CHARACTERS = 4  # of a token
_CAPTION_TOKENS = 150
_QUESTION_TOKENS = 180


def cost_table(config: EngineConfig, totals: dict[str, Total], before: dict[str, Total] | None = None) -> str:
    """Returns a Markdown table of requests, tokens and dollars by role; with `before`, also the requests since then."""
    rows, sum_dollars = [], 0.0
    for role, model in config.models.items():
        total = totals.get(role, Total())
        dollars = model.dollars(total.prompt_tokens, total.answer_tokens)
        sum_dollars += dollars
        new = [] if before is None else [f"{total.results - before.get(role, Total()).results:,}"]
        cells = [role, model.model, *new, *(f"{value:,}" for value in total), f"{dollars:.2f}"]
        rows.append("| " + " | ".join(cells) + " |")
    new = [] if before is None else ["new requests"]
    header = ["role", "model", *new, "requests", "prompt tokens", "answer tokens", "dollars"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *rows]
    return "\n".join([*lines, "", f"sum: ${sum_dollars:.2f}"])


async def estimate(engine: Engine, folder: Path) -> str:
    """Returns what the videos of a folder would cost if nothing were stored, and what is wrong with them.

    A role that has answered requests in this folder is expected to go on as before. For another, an answer is taken to
    have 150 tokens a caption and 180 a question, a frame and a second of sound what the settings say.
    """
    folder = folder.absolute()
    problems, counts = [], Counter()
    for path in find_videos(folder):
        try:
            probed = await engine.probed(path, source_identity(folder, path))
        except (UserError, OSError) as error:
            problems.append(str(error))
            continue
        segments = segment_spans(probed, engine.config.segment_seconds, engine.config.clip_seconds)
        clips = [len(segment["clips"]) for segment in segments]
        counts += Counter(videos=1, segments=len(segments), clips=sum(clips), seconds=math.ceil(probed["seconds"]))
        counts["sound"] += sum(level >= engine.config.silence for level in probed["levels"])
    totals = _expected(engine, counts)
    found = (
        f"{counts['videos']:,} videos, {counts['seconds'] / 3600:.2f} hours ({counts['sound'] / 3600:.2f} with sound), "
        f"{counts['segments']:,} segments, {counts['clips']:,} clips"
    )
    return "\n".join([found, "", cost_table(engine.config, totals), "", f"{len(problems)} unreadable", *problems[:20]])


def _expected(engine: Engine, counts: Counter) -> dict[str, Total]:
    config, seen = engine.config, engine.store.totals()
    segments, clips = counts["segments"], counts["clips"]
    asked = {name: len(prompt.text) // _CHARACTERS for name, prompt in engine.prompts.items()}
    # Questions have four options as a rule, so each is answered `tries` times under each of three conditions.
    judged = segments * config.questions * config.tries
    frames, sound = config.frames * config.frame_tokens, config.sound_tokens * counts["sound"]
    guesses = {
        "vision": Total(clips, clips * (frames + asked["vision_caption"]), clips * _CAPTION_TOKENS),
        "audio": Total(clips, round(sound) + clips * asked["audio_caption"], clips * _CAPTION_TOKENS),
        "corrector": Total(
            segments,
            segments * asked["correct"] + 2 * clips * _CAPTION_TOKENS,
            2 * clips * _CAPTION_TOKENS + 2 * segments * _CAPTION_TOKENS,
        ),
        "questioner": Total(
            segments,
            segments * (asked["questions"] + 2 * _CAPTION_TOKENS),
            segments * config.questions * _QUESTION_TOKENS,
        ),
        "judge": Total(
            3 * judged,
            3 * judged * (asked["judge"] + 60) + config.questions * config.tries * round(clips * frames + sound),
            3 * judged * 2,
        ),
    }
    totals = {}
    for role in config.models:
        guess, known = guesses[role], seen.get(role, Total())
        if known.results:
            means = (tokens / known.results for tokens in known[1:])
            guess = Total(guess.results, *(round(mean * guess.results) for mean in means))
        totals[role] = guess
    return totals
