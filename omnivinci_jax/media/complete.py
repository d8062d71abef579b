"""Tells whether a file is cut off: most formats store how many bytes or seconds belong to them."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import av
import av.error
from av.container import InputContainer

from omnivinci_jax.errors import MediaError

# FFmpeg computes their duration from the size of the file, so what is missing shows only in bytes.
_BY_FILE_SIZE = {"wav", "w64", "caf", "avi", "asf"}
# Of plain samples, FFmpeg calls the last few corrupt if they do not fill a packet.
PLAIN_SAMPLES = {"wav", "w64", "caf", "aiff", "au"}
# These store how many samples they hold, and not how many bytes.
_BY_SAMPLES = {"flac", "wv", "tta"}
# Programs that write to a pipe do not know the size; these stand for it (sox, lame and others write the last ones).
_UNKNOWN_SIZES = {0, *range(2**32 - 64, 2**32), *range(0x7FFF_F000, 0x8000_0001)}
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_EBML_HEADER, _EBML_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MAX_OGG_PAGE = 27 + 255 + 255 * 255


def check_complete(container: InputContainer, path: str) -> None:
    """Raises MediaError if the end of the file is missing; the message says at which second, if the file knows."""
    size = os.path.getsize(path)
    declared = declared_bytes(path)
    if declared is None or declared <= size:
        _check_index(container, path, size)
        return
    found, name = _end_seconds(path), container.format.name
    whole = found * declared / size if name in _BY_FILE_SIZE else (container.duration or 0) / av.time_base
    if name != "ogg" and found < whole - max(0.1, 0.01 * whole):
        raise MediaError(cut_off(path, found, whole))
    if name in ("ogg", "gif") or name.startswith("mov") or not whole:
        raise MediaError(f"{path}: is cut off at {found:.1f} s")
    # Otherwise only an index at the end is missing, or a byte of padding.


def check_samples(container: InputContainer, found: float, path: str | os.PathLike[str]) -> None:
    """Raises MediaError if the last packet, which ends at second `found`, is not the last by the header's count."""
    whole = (container.duration or 0) / av.time_base
    if container.format.name in _BY_SAMPLES and found < whole - 0.1:
        raise MediaError(cut_off(path, found, whole))


def cut_off(path: str | os.PathLike[str], found: float, whole: float) -> str:
    """Returns the message about a file that ends early."""
    return f"{path}: is cut off at {found:.1f} s of {whole:.1f} s"


def _check_index(container: InputContainer, path: str, size: int) -> None:
    # An mp4 with its index at the front opens even when its end is missing: the index points past the end of the file.
    for stream in container.streams:
        entries = stream.index_entries
        if len(entries) and entries[-1].pos + entries[-1].size > size:
            missing = min(entry.timestamp for entry in entries if entry.pos + entry.size > size)
            found = float(missing * stream.time_base) if stream.time_base else 0.0
            raise MediaError(cut_off(path, found, max(found, (container.duration or 0) / av.time_base)))


def _end_seconds(path: str) -> float:
    """Returns the end of the last packet that the file still has, from the start of the clip."""
    start, end = None, 0.0
    with av.open(f"file:{path}", metadata_errors="ignore") as container:
        try:
            for packet in container.demux():
                whole = not packet.is_corrupt or container.format.name in PLAIN_SAMPLES
                if packet.size and packet.pts is not None and whole:
                    seconds = float(packet.pts * packet.time_base)
                    start = seconds if start is None else min(start, seconds)
                    end = max(end, seconds + float((packet.duration or 0) * packet.time_base))
        except av.error.FFmpegError:  # a packet without its end
            pass
    return end - (start or 0.0)


def declared_bytes(path: str | os.PathLike[str]) -> int | None:
    """Returns how many bytes the file should have by its own headers; None if they do not say."""
    with open(path, "rb") as file:
        size = os.path.getsize(path)
        magic = file.read(16)
        if len(magic) < 16:
            return None
        if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and magic[8:12] == b"WAVE":
            return _wav(file, ">" if magic[:4] == b"RIFX" else "<")
        if magic[:4] == b"RIFF" and magic[8:12] == b"AVI ":
            return _end(_chunks(file, 0, size, "<4sI"))
        if magic[:4] == b"FORM":
            return _end(_chunks(file, 0, size, ">4sI"))
        if magic[:4] == b".snd":
            start, length = struct.unpack_from(">II", magic, 4)
            return None if length in _UNKNOWN_SIZES else start + length
        if magic[:4] == b"caff":
            return _end(_chunks(file, 8, size, ">4sq"))
        if magic[:4] == b"riff":  # Sony Wave64
            return _end(_chunks(file, 0, size, "<16sQ", counts_header=True))
        if magic == _ASF_HEADER:
            return _end(_chunks(file, 0, size, "<16sQ", counts_header=True))
        if magic[:4] == _EBML_HEADER:
            return _matroska(file, size)
        if magic[4:8] in (b"ftyp", b"styp", b"moov", b"moof"):
            return _end(_mp4_boxes(file, size))
        if magic[:4] == b"OggS":
            return _ogg(file, size)
        if magic[:3] == b"FLV":
            return _flv(file)
        if magic[:4] == b"GIF8":
            return _gif(file, size)
        if magic[:4] == b"\x76\x2f\x31\x01":
            return _exr(file, size)
        return _mp3(file, magic)


def _end(chunks: Iterator[tuple[bytes, int, int | None]]) -> int | None:
    end = None
    for _, _, end in chunks:  # noqa: B007 - the end of the last chunk
        pass
    return end


def _chunks(
    file: BinaryIO, position: int, size: int, header: str, counts_header: bool = False
) -> Iterator[tuple[bytes, int, int | None]]:
    """Yields (name, start, end) of the chunks from `position` on; an unknown end, None, is the last."""
    length = struct.calcsize(header)
    while position + length <= size:
        file.seek(position)
        name, content = struct.unpack(header, file.read(length))
        start = position + length
        if content in _UNKNOWN_SIZES or content < 0 or (counts_header and content < length):
            yield name, start, None
            return
        end = position + content if counts_header else start + content
        yield name, start, end
        position = end + (end % 2 if header in ("<4sI", ">4sI") else 0)


def _wav(file: BinaryIO, order: str) -> int | None:
    long_size = None
    for name, start, end in _chunks(file, 12, os.fstat(file.fileno()).st_size, f"{order}4sI"):
        if name == b"ds64":  # of RF64, whose other sizes are placeholders
            file.seek(start + 8)
            long_size = int.from_bytes(file.read(8), "little")
        if name == b"data":
            return start + long_size if end is None and long_size else end
    return None


def _mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int | None]]:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8:  # 0: to the end of the file
            return
        if name in (b"mdat", b"moof", b"moov"):
            yield name, position, position + length
        position += length


def _matroska(file: BinaryIO, size: int) -> int | None:
    position, end = 0, None
    while position + 12 <= size:
        file.seek(position)
        name = file.read(4)
        first = file.read(1)[0]
        length = 9 - first.bit_length()  # bytes of the number, by the leading zeros of the first
        number = int.from_bytes(bytes([first & (0x7F >> (length - 1)) if length <= 8 else 0]) + file.read(length - 1))
        if name not in (_EBML_HEADER, _EBML_SEGMENT) or length > 8:
            return end
        if number == 2 ** (7 * length) - 1:  # unknown, as in live recordings
            return None
        position = end = position + 4 + length + number
    return end


def _ogg(file: BinaryIO, size: int) -> int | None:
    start = max(0, size - _MAX_OGG_PAGE)
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    segments = tail[page + 26] if page >= 0 and page + 26 < len(tail) else None
    if segments is None:
        return None if page < 0 else start + page + 27
    header = page + 27 + segments
    return start + header + sum(tail[page + 27 : header])


def _flv(file: BinaryIO) -> int | None:
    file.seek(0)
    _, found, value = file.read(4096).partition(b"\x00\x08filesize\x00")
    number = struct.unpack(">d", value[:8])[0] if found and len(value) >= 8 else 0.0
    return int(number) if 0 < number < 2**62 else None


def _gif(file: BinaryIO, size: int) -> int | None:
    """Returns more than `size` if the file ends inside a block; blocks say only how long they are themselves."""
    file.seek(10)

    def skip_table() -> None:
        flags = int.from_bytes(file.read(1))
        file.seek(3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0, os.SEEK_CUR)

    skip_table()
    file.seek(2, os.SEEK_CUR)
    while (kind := file.read(1)) in (b"!", b","):  # an extension, an image
        file.seek(8 if kind == b"," else 1, os.SEEK_CUR)
        if kind == b",":
            skip_table()
            file.seek(1, os.SEEK_CUR)
        while (length := file.read(1)) != b"\0":
            if not length:
                return size + 1
            file.seek(length[0], os.SEEK_CUR)
    return None


def _exr(file: BinaryIO, size: int) -> int | None:
    """Returns the end of the last chunk of lines; None for tiles, deep pixels and several parts."""
    file.seek(0)
    head = file.read(2**20)
    if int.from_bytes(head[4:8], "little") & 0x1A00:
        return None
    position = 8
    try:
        while head[position]:  # an attribute: its name, its type, its length
            position = head.index(0, head.index(0, position) + 1) + 1
            position += 4 + int.from_bytes(head[position : position + 4], "little")
    except (ValueError, IndexError):
        return None
    position, first, last = position + 1, size, 0
    while position < first:  # the table of chunks ends where the first of them begins
        chunk = int.from_bytes(head[position : position + 8], "little")
        position, first, last = position + 8, min(first, chunk), max(last, chunk)
    file.seek(min(last, size) + 4)
    return last + 8 + int.from_bytes(file.read(4), "little") if first else None


def _mp3(file: BinaryIO, magic: bytes) -> int | None:
    start = 0
    if magic[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(magic[6:10], (21, 14, 7, 0), strict=True))
    file.seek(start)
    frame = file.read(64)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:  # MPEG layer 3
        return None
    mpeg1, mono = frame[1] & 0x18 == 0x18, frame[3] >> 6 == 3
    tag = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    if frame[tag : tag + 4] in (b"Xing", b"Info") and frame[tag + 7] & 2:
        offset = tag + 8 + 4 * (frame[tag + 7] & 1)
    elif frame[36:40] == b"VBRI":
        offset = 46
    else:
        return None
    return start + int.from_bytes(frame[offset : offset + 4]) or None
