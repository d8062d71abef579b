"""`omnivinci shard`: a JSONL file and its media as ArrayRecord shards, in parallel, restartable. It imports no jax.

A shard is a pure function of its lines and their files, written under another name and moved when whole: what a killed
run has finished is kept, and the next one gives what an undisturbed one would have.
"""

import hashlib
import io
import json
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
from jaxtyping import Float32
from scipy.io import wavfile
from tqdm import tqdm

from omnivinci_jax.data.records import Entry, Jsonl
from omnivinci_jax.data.shards import MANIFEST, media_key, shard_bounds, shard_name
from omnivinci_jax.errors import DataError, MediaError
from omnivinci_jax.media import decode
from omnivinci_jax.paths import AnyPath, atomic_file, remove_unfinished
from omnivinci_jax.sequence.chat import Media

Decoder = Literal["default", "tfio"]
SAMPLING_RATE = 16_000


def write_shards(data: Path, out: AnyPath, per_shard: int, workers: int, decoder: Decoder = "default") -> dict:
    """Writes what is missing of the shards of a JSONL file, and returns what shards.json says then.

    Sounds are stored decoded, in 16 kHz mono; videos and images as their files are. A file that cannot be read is noted
    in its place: the index will name it.

    Args:
        data: JSONL file; media paths are relative to it.
        out: folder of the shards.
        per_shard: conversations in each.
        workers: processes.
        decoder: what reads sound files: soundfile and PyAV, or tensorflow-io.

    Raises:
        DataError: a line that is no conversation, or a folder that holds other shards.
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
    _begin(out, plan)
    names = [[shard_name(kind, shard, count) for kind in ("media", "conversations")] for shard in range(count)]
    missing = [shard for shard in range(count) if not all((out / name).exists() for name in names[shard])]
    write = partial(_write_shard, records=records, out=out, decoder=decoder)
    with (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=count, initial=count - len(missing), desc=f"shard {data.name}", unit=" shards") as bar,
    ):
        running = [pool.submit(write, names[shard], entries[bounds[shard] : bounds[shard + 1]]) for shard in missing]
        try:
            for shard in as_completed(running):
                shard.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    manifest = plan | {"bytes": [[(out / name).stat().length for name in pair] for pair in names]}
    _write_manifest(out, manifest)
    return manifest


def _begin(out: AnyPath, plan: dict) -> None:
    """Notes in the folder what it is to hold; raises DataError where it holds something else."""
    path = out / MANIFEST
    if path.exists():
        known = json.loads(path.read_text())
        for name, value in plan.items():
            if known[name] != value:
                raise DataError(
                    f"{out}: it holds shards of something else ({name} is {known[name]}, and would be {value}); "
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


def _write_shard(names: list[str], entries: list[Entry], records: Jsonl, out: AnyPath, decoder: Decoder) -> None:
    media, conversations = (out / name for name in names)
    numbers, lines = {}, []
    read_waveform = _decoder(decoder)
    with _writer(media, "uncompressed") as write:  # they are compressed already
        for entry in entries:
            # Paths as the file has them, which they keep in the folder of shards.
            items = {media_key(item): item for item in records.conversation(entry, Path()).media}
            for key, item in items.items():
                if key not in numbers:
                    numbers[key] = len(numbers)
                    write(_stored(item, records.path.parent, read_waveform))
            line = {"line": entry.line, "record": records.record(entry), "media": {key: numbers[key] for key in items}}
            lines.append(json.dumps(line, ensure_ascii=False).encode())
    # Last: where they are, the shard is whole.
    with _writer(conversations, "zstd") as write:
        for line in lines:
            write(line)


@contextmanager
def _writer(path: AnyPath, compression: str) -> Iterator[Callable[[bytes], object]]:
    """What appends a record to a file that is there when all are written."""
    with atomic_file(path) as part, closing(ArrayRecordWriter(str(part), f"group_size:1,{compression}")) as writer:
        yield writer.write


def _stored(item: Media, folder: Path, read_waveform: Callable[[Path], Float32[np.ndarray, " t"]]) -> bytes:
    path = folder / item.path
    try:
        if item.kind == "sound":
            file = io.BytesIO()
            wavfile.write(file, SAMPLING_RATE, read_waveform(path))
            return _record({"suffix": ".wav"}, file.getvalue())
        return _record({"suffix": path.suffix}, path.read_bytes())
    except MediaError as error:
        return _record({"problem": str(error)})
    except OSError as error:
        return _record({"problem": f"{path}: {error.strerror}; check the path"})


def _record(header: dict[str, str], content: bytes = b"") -> bytes:
    return json.dumps(header).encode() + b"\n" + content


def _decoder(name: Decoder) -> Callable[[Path], Float32[np.ndarray, " t"]]:
    if name == "tfio":
        from omnivinci_jax.media.tfio import read_waveform

        return read_waveform
    return decode.read_waveform
