"""What the reports of all runs have in common."""

from collections.abc import Sequence
from pathlib import Path

_SHOWN_SKIPPED = 20


def report_head(folder: Path, metrics: list[dict], picture: str, seconds: float, parameters: int) -> list[str]:
    """Returns the first lines of report.md: the run's name, size and length, and a picture, `picture`.png."""
    steps = max((line["step"] for line in metrics if line["split"] == "train"), default=0)
    size = f"{parameters:,} parameters, {steps} steps, {seconds:.0f} s."
    return [f"# {folder.name}", "", size, "", f"![{picture}]({picture}.png)"]


def skipped_lines(skipped: Sequence[str], what: str) -> list[str]:
    """Returns lines that count what was skipped, and list the first."""
    if not skipped:
        return []
    return ["", f"{len(skipped)} {what} were skipped:", "", *(f"- {line}" for line in skipped[:_SHOWN_SKIPPED])]
