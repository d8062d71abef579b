"""The report of a run: counts by stage as Markdown, and a page with examples to look at and listen to."""

import os
from collections import Counter
from html import escape
from pathlib import Path
from urllib.parse import quote

from omnivinci_jax.data_engine.output import Counts
from omnivinci_jax.data_engine.stages import Row, prompt_of
from omnivinci_jax.paths import atomic_file

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
section { border-top: 1px solid #bbb; margin-top: 2rem; padding-top: 1rem }
video { max-width: 100%; max-height: 20rem; background: #000 }
table { border-collapse: collapse; width: 100% }
td, th { border: 1px solid #ccc; padding: .3rem .5rem; text-align: left; vertical-align: top; width: 24% }
td:first-child { width: 5rem } .drop { color: #a00 } pre { white-space: pre-wrap }
summary { cursor: pointer }
"""


def counts_table(counts: Counts, videos: int) -> str:
    """Returns the counts as Markdown."""
    stages = {"videos": videos} | {name: counts.stages[name] for name in counts.stages}
    lines = ["| stage | rows |", "|---|---|", *(f"| {name} | {count:,} |" for name, count in stages.items())]
    for title, counter in (
        ("error in", counts.errors),
        ("caption dropped", counts.dropped_captions),
        ("question dropped", counts.dropped_questions),
        ("question needs", counts.needs),
        ("kind", counts.kinds),
        ("right option", counts.letters),
    ):
        if counter:
            lines += ["", f"| {title} | rows |", "|---|---|"]
            lines += [f"| {name} | {count:,} |" for name, count in _largest_first(counter)]
    return "\n".join(lines)


def write_report(out: Path, table: str, costs: str, examples: list[Row]) -> None:
    """Writes `report.md`, and `report.html` with the examples."""
    with atomic_file(out / "report.md") as part:
        part.write_text(f"# Data engine\n\n{table}\n\n{costs}\n", encoding="utf-8")
    sections = "".join(_section(row, out.absolute()) for row in examples)
    page = f"<!doctype html><meta charset=utf-8><title>Data engine</title><style>{_STYLE}</style><h1>Data engine</h1>"
    numbers = f"<details><summary>Counts and costs</summary><pre>{escape(table)}\n\n{escape(costs)}</pre></details>"
    with atomic_file(out / "report.html") as part:
        part.write_text(page + numbers + sections, encoding="utf-8", errors="backslashreplace")


def _section(row: Row, out: Path) -> str:
    source = quote(os.path.relpath(row["file"], out))
    title = f"{row['video']}, {row['start']:.0f} to {row['end']:.0f} s"
    lines = [f'<section><h2>{escape(title)}</h2><video controls preload=none src="{source}"></video>']
    if reason := row.get("drop"):
        lines.append(f"<p class=drop>dropped: {escape(reason)}</p>")
    lines.append(f"<p>{escape(row['caption'])}</p><table><tr><th>seconds<th>seen<th>corrected<th>heard<th>corrected")
    names = ("vision", "corrected_vision", "audio", "corrected_audio")
    for clip, *texts in zip(row["clips"], *(row[name] for name in names), strict=True):
        cells = "".join(f"<td>{escape(text)}" for text in texts)
        lines.append(f"<tr><td>{clip[0]:.0f} to {clip[1]:.0f}{cells}")
    lines.append("</table>")
    for question in row.get("questions", ()):
        fate = question.get("drop")
        note = (
            f"<span class=drop>dropped: {escape(fate)}</span>"
            if fate
            else escape(f"needs {question.get('needs', '?')}")
        )
        asked, answer = escape(prompt_of(question)), escape(question["answer"])
        lines.append(f"<pre>{asked}</pre><p>{answer}: {escape(question['reasoning'])} ({note})</p>")
    return "\n".join([*lines, "</section>"])


def _largest_first(counter: Counter) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))
