"""Embeddings of a prompt's media, encoded in slices of bounded memory and cached by the files' content."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, UInt8

from omnivinci_jax.data.processor import Processor, file_state
from omnivinci_jax.data.shards import on_disk
from omnivinci_jax.errors import MediaError
from omnivinci_jax.generate.programs import begin_sound, encode_sound, encode_vision, end_sound
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.assemble import Tiles, Windows
from omnivinci_jax.sequence.batch import AUDIO, TEXT, VISION
from omnivinci_jax.sequence.chat import Inline, Media
from omnivinci_jax.sequence.row import MediaSize, Row, lay_out_media
from omnivinci_jax.sequence.slices import sound_slices, vision_slices

CACHE_BYTES = 2**30

# An item's size, tiles and windows, as `MediaReader.load_item` returns them.
Loaded = tuple[MediaSize, UInt8[np.ndarray, "n P P 3"], Float32[np.ndarray, "w F M"]]


class EncodedMedia(NamedTuple):
    """A media item: its size, the embeddings of its slots in order, and an id that is unique to its content."""

    size: MediaSize
    tokens: Float[np.ndarray, "m D"]
    id: int


def encode_row(
    model: OmniVinci,
    params: dict,
    row: Row,
    tiles: Tiles,
    windows: Windows,
    multiple: int = 1,
) -> Float[np.ndarray, "m D"]:
    """Returns the embeddings of a row's media slots, in order; slices have multiples of `multiple` tiles or windows."""
    return drain(encode_slices(model, params, row, tiles, windows, multiple))


def encode_slices(
    model: OmniVinci,
    params: dict,
    row: Row,
    tiles: Tiles,
    windows: Windows,
    multiple: int = 1,
    small: bool = False,
) -> Generator[None, None, Float[np.ndarray, "m D"]]:
    """Like `encode_row`; yields after each slice, so that the caller can do other work between them.

    If `small`, slices of tiles are small where they can be, and a window is encoded in two halves of the tower.
    """
    config = model.config
    pools = [[] for _ in range(VISION + len(config.vision_pools))]  # by slot kind
    for kind, slices in (
        (VISION, vision_slices(row, tiles, config, multiple, small=small)),
        (AUDIO, sound_slices(row, windows, config, multiple)),
    ):
        for group, spans in slices:
            if kind == VISION:
                tokens = encode_vision(model, params, group)
            elif small and config.audio.encoder_layers > 1:
                half_encoded = jax.block_until_ready(begin_sound(model, params, group))
                yield
                tokens = end_sound(model, params, group, half_encoded)
            else:
                tokens = encode_sound(model, params, group)
            tokens = np.asarray(tokens)
            for pool, span in enumerate(spans):
                pools[kind + pool].append(tokens[span])
            yield
    embeddings = np.zeros((len(row), config.text.hidden_size), model.compute.dtype)
    for kind, pool in enumerate(pools):
        if pool:
            slots = row.slot_kind == kind
            embeddings[slots] = np.concatenate(pool)[row.slot_index[slots]]
    return embeddings[row.slot_kind != TEXT]


class MediaCache:
    """Encodes media items and caches the most recently used embeddings in host memory."""

    def __init__(
        self,
        model: OmniVinci,
        processor: Processor,
        multiple: int = 1,
        max_bytes: int = CACHE_BYTES,
        small: bool = False,
    ):
        """`multiple`, `small` as in `encode_slices`; `max_bytes` of embeddings are kept, and always the last item's."""
        self._model, self._processor, self._multiple, self._small = model, processor, multiple, small
        self._max_bytes = max_bytes
        self._encoded: OrderedDict[tuple, EncodedMedia] = OrderedDict()
        self._count = 0

    @property
    def bytes(self) -> int:
        """Bytes of the cached embeddings."""
        return sum(item.tokens.nbytes for item in list(self._encoded.values()))

    def has(self, item: Media, tiled: bool) -> bool:
        """Returns whether an item is cached; raises MediaError."""
        return _key(item, tiled) in self._encoded

    def encode(
        self, params: dict, item: Media, tiled: bool, load: Callable[[Media, bool], Loaded] | None = None
    ) -> Generator[None, None, EncodedMedia]:
        """Returns an item's embeddings; yields after each slice that is encoded.

        Args:
            params: the parameters.
            item: the media item.
            tiled: as in `Processor.load_item`.
            load: loads the item; None: `Processor.load_item`.

        Raises:
            MediaError: it cannot be read.
        """
        key = _key(item, tiled)
        if key not in self._encoded:
            size, tiles, windows = (load or self._processor.load_item)(item, tiled)
            row = lay_out_media(item, size, self._model.config)
            tokens = yield from encode_slices(self._model, params, row, tiles, windows, self._multiple, self._small)
            self._encoded[key] = EncodedMedia(size, tokens, self.new_id())
        self._encoded.move_to_end(key)
        found = self._encoded[key]
        while len(self._encoded) > 1 and self.bytes > self._max_bytes:
            self._encoded.popitem(last=False)
        return found

    def new_id(self) -> int:
        """Returns an id that no other media has."""
        self._count += 1
        return self._count

    def clear(self) -> None:
        """Drops all embeddings; ids are never reused."""
        self._encoded.clear()


def drain(pieces: Generator[None, None, Any]) -> Any:
    """Runs a generator to its end; returns its result."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def _key(item: Media, tiled: bool) -> tuple:
    if isinstance(item.stored, Inline):
        digest = item.stored.sha256
    else:
        with on_disk(item) as file:
            digest = _digest(*file_state(file.path))
    return digest, item.kind, item.track, item.muted, tiled


@lru_cache(maxsize=1024)
def _digest(path: str, _size: int, _changed: int) -> bytes:
    """Returns the SHA-256 of a file's content; cached by size and time of change."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise MediaError(f"{path}: it cannot be read: {error.strerror}") from None
