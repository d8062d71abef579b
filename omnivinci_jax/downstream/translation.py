"""CoVoST 2's speech translation (Appendix B.3, Table 13).

A split is `covost_v2.SOURCE_TARGET.SPLIT.tsv` with the columns path, sentence, translation and client_id; its clips are
Common Voice's.
"""

import csv
import re
from pathlib import Path

from omnivinci_jax.av_world.generate import write_rows
from omnivinci_jax.downstream.rows import open_text, row
from omnivinci_jax.errors import DataError

LANGUAGES = {"en": "English", "zh-CN": "Chinese", "ja": "Japanese", "ar": "Arabic", "de": "German"}  # of the paper
_NAME = re.compile(r"covost_v2\.([A-Za-z-]+)_([A-Za-z-]+)\.(train|dev|test)\.tsv")
_COLUMNS = ("path", "sentence", "translation")


def convert(table: Path, clips: Path, out: Path) -> dict[str, int]:
    """Writes a question about every clip as OUT/SOURCE_TARGET.SPLIT.jsonl; returns the number of rows.

    The answer is the translation; `kind` is the direction, for example en_de; `transcript` is the sentence.

    Args:
        table: the split.
        clips: Common Voice's folder of clips in the source language.
        out: the folder to write.

    Raises:
        DataError: another name, language or layout; a line of another length; an empty translation; a missing clip.
    """
    found = _NAME.fullmatch(table.name)
    if not found:
        raise DataError(f"{table}: CoVoST 2 names its files covost_v2.SOURCE_TARGET.SPLIT.tsv, with train, dev or test")
    source, target, split = found.groups()
    for language in (source, target):
        if language not in LANGUAGES:
            raise DataError(f"{table}: unknown language {language!r}; the paper has {', '.join(LANGUAGES)}")
    if (source == "en") == (target == "en"):
        raise DataError(f"{table}: CoVoST 2 translates to or from English")
    text = open_text(table, "a split of CoVoST 2")
    # As the data set's own reader does: quotes are characters, and a backslash takes the next one as it is.
    lines = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")
    header = next(lines, [])
    for name in _COLUMNS:
        if name not in header:
            raise DataError(f"{table}:1: no column {name}; it has {', '.join(header) or 'none'}")
    question = f"Translate the speech from {LANGUAGES[source]} to {LANGUAGES[target]}."
    rows = []
    for cells in lines:
        where = f"{table}:{lines.line_num}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        path, sentence, translation = (cells[header.index(name)] for name in _COLUMNS)
        if not translation.strip():
            raise DataError(f"{where}: an empty translation")
        clip = clips / path
        if not clip.is_file():
            raise DataError(f"{where}: {clip}: no such clip; give the folder of Common Voice's clips in {source}")
        items = [("audio", str(clip.absolute())), ("text", question)]
        rows.append(row(Path(path).stem, items, translation, f"{source}_{target}") | {"transcript": sentence})
    if not rows:
        raise DataError(f"{table}: no clips after the header")
    name = f"{source}_{target}.{split}"
    write_rows(out / f"{name}.jsonl", rows)
    return {name: len(rows)}
