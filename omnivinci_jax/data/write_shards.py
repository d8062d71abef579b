"""`omnivinci shard`: writes a JSONL file and its media as ArrayRecord shards, in parallel, restartable, without jax.

A shard is a pure function of its lines and their files, and is written atomically: a second run keeps the shards that a
killed one finished, and the result equals that of an uninterrupted run.
"""

import hashlib
import io
import json
import logging
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jaxtyping import Float32
from scipy.io import wavfile
from tqdm import tqdm

from omnivinci_jax import strict_json
from omnivinci_jax.data.records import Entry, Jsonl, check_skipped
from omnivinci_jax.data.shards import MANIFEST, media_key, shard_bounds, shard_name
from omnivinci_jax.errors import DataError, describe_at
from omnivinci_jax.media import decode, stills
from omnivinci_jax.paths import AnyPath, atomic_file, remove_unfinished
from omnivinci_jax.sequence.chat import Media

log = logging.getLogger("omnivinci")

Decoder = Literal["default", "tfio"]
SAMPLING_RATE = 16_000
# Longer sounds are stored as they are: an hour is 230 MB decoded, and the most that the published model reads.
_LONGEST_DECODED_SECONDS = 3600.0


def write_shards(
    data: Path, out: AnyPath, per_shard: int, workers: int, decoder: Decoder = "default", max_skipped: float = 1.0
) -> dict:
    """Writes the missing shards of a JSONL file, and returns the contents of shards.json.

    Sounds of up to an hour are stored decoded, as 16 kHz mono; longer ones, videos and images unchanged. If a line or a
    file cannot be read, its record holds the error, which the index reports. Of videos the sound is decoded, and not
    the frames: which of them are read depends on the model.

    Args:
        data: JSONL file; media paths are relative to it.
        out: folder of the shards.
        per_shard: conversations per shard.
        workers: number of processes.
        decoder: for sound files: soundfile and PyAV, or tensorflow-io.
        max_skipped: largest share of the samples that may be unreadable.

    Raises:
        DataError: too many samples cannot be read, or the folder holds other shards.
    """
    records = Jsonl(data)
    entries = records.entries()
    count = math.ceil(len(entries) / per_shard)
    bounds = shard_bounds(len(entries), count)
    plan = {
        "data": data.name,
        "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
        "conversations": len(entries),
        "shards": count,
        "decoder": decoder,
    }
    _claim_folder(out, plan)
    names = [[shard_name(kind, shard, count) for kind in ("media", "conversations")] for shard in range(count)]
    missing = [shard for shard in range(count) if not all((out / name).exists() for name in names[shard])]
    write = partial(_write_shard, records=records, out=out, decoder=decoder)
    with (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=count, initial=count - len(missing), desc=f"shard {data.name}", unit=" shards") as bar,
    ):
        running = [pool.submit(write, names[shard], entries[bounds[shard] : bounds[shard + 1]]) for shard in missing]
        try:
            problems = []
            for shard in as_completed(running):
                for problem in shard.result():
                    log.warning("skipped: %s", problem)
                    problems.append(problem)
                check_skipped(problems, len(entries), max_skipped, data)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    manifest = plan | {"bytes": [[epath.Path(out / name).stat().length for name in pair] for pair in names]}
    _write_manifest(out, manifest)
    return manifest


def _claim_folder(out: AnyPath, plan: dict) -> None:
    """Writes the plan into the folder's manifest; raises DataError if the folder holds something else."""
    path = out / MANIFEST
    if path.exists():
        known = strict_json.read(path)
        for name, value in plan.items():
            if known[name] != value:
                raise DataError(
                    f"{out}: holds shards of other data or settings ({name} is {known[name]}, and would be {value}); "
                    "give another --out, or delete it"
                )
        remove_unfinished(out)
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: the folder is not empty and holds no shards; give another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        _write_manifest(out, plan | {"bytes": []})


def _write_manifest(out: AnyPath, manifest: dict) -> None:
    with atomic_file(out / MANIFEST) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n")


def _write_shard(names: list[str], entries: list[Entry], records: Jsonl, out: AnyPath, decoder: Decoder) -> list[str]:
    """Writes a shard; returns a line for each sample that cannot be read."""
    media, conversations = (out / name for name in names)
    record_indices, media_problems, lines, problems = {}, {}, [], []
    read_waveform = _decoder(decoder)
    with _writer(media, "uncompressed") as write:  # media files are already compressed
        for entry in entries:
            where = f"{records.path}:{entry.line}"
            try:
                # Paths relative to the JSONL file; the folder of shards keeps them. Inline media stay in the record.
                files = (item for item in records.conversation(entry, Path()).media if not item.stored)
                items = {media_key(item): item for item in files}
            except Exception as error:  # whatever one sample raises leaves out only that sample
                problems.append(describe_at(where, error))
                problem = problems[-1].removeprefix(f"{where}: ")
                lines.append(strict_json.dumps({"line": entry.line, "problem": problem}).encode())
                continue
            for item in items.values():  # by item: what is said about a file depends on its kind and track
                if item not in record_indices:
                    record_indices[item] = len(record_indices)
                    header, content = _media_record(item, records.path.parent, read_waveform)
                    media_problems[item] = header.get("problem")
                    write(json.dumps(header).encode() + b"\n" + content)
            problems += [f"{where}: {media_problems[item]}" for item in items.values() if media_problems[item]][:1]
            media_records = {key: record_indices[item] for key, item in items.items()}
            line = {"line": entry.line, "record": records.record(entry), "media": media_records}
            lines.append(strict_json.dumps(line).encode())
    # Written last: this file marks the shard as complete.
    with _writer(conversations, "zstd") as write:
        for line in lines:
            write(line)
    return problems


@contextmanager
def _writer(path: AnyPath, compression: str) -> Iterator[Callable[[bytes], object]]:
    """Yields a function that appends a record to a file, which appears once it is complete."""
    with atomic_file(path) as part, closing(ArrayRecordWriter(str(part), f"group_size:1,{compression}")) as writer:
        yield writer.write


def _media_record(
    item: Media, folder: Path, read_waveform: Callable[..., Float32[np.ndarray, " t"]]
) -> tuple[dict[str, str | bool], bytes]:
    """Returns the header and the content of an item's record."""
    path = folder / item.path
    try:
        if item.kind == "sound" and decode.probe_audio(path, item.track) <= _LONGEST_DECODED_SECONDS:
            file = io.BytesIO()
            wavfile.write(file, SAMPLING_RATE, read_waveform(path, track=item.track))
            return {"suffix": ".wav", "decoded": True}, file.getvalue()
        if item.kind == "image":
            stills.read_image(path)
        elif item.kind == "video" and decode.probe_video(path, item.track).audio_seconds:
            decode.read_waveform(path, max_seconds=_LONGEST_DECODED_SECONDS, track=item.track)
        return {"suffix": path.suffix}, path.read_bytes()
    except OSError as error:
        return {"problem": f"{path}: {error.strerror}; check the path"}, b""
    except Exception as error:  # whatever one file raises leaves out only its samples
        return {"problem": describe_at(str(path), error)}, b""


def _decoder(name: Decoder) -> Callable[..., Float32[np.ndarray, " t"]]:
    if name == "tfio":
        from omnivinci_jax.media.tfio import read_waveform

        return read_waveform
    return decode.read_waveform
