"""The option --images of the verbs that draw figures: images beside the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = "images"


def check(formats: Sequence[str] | None, out: str | None) -> None:
    """Refuse images that could not be written, before any work is done.

    Raises:
        ValueError: If a format is unknown, there is no folder to write to, or kaleido is not installed.
        FileNotFoundError: If there is no browser to draw with.
    """
    if not formats:
        return
    from bilinear_circuits.report.images import check_images

    if out is None:
        raise ValueError(f"images are written to a folder of --out, got --images {' '.join(formats)} without --out.")
    check_images(formats)


def written(figures: Mapping[str, dict[str, Any]], out: str, formats: Sequence[str] | None) -> list[str]:
    """Draw every figure of a report in these formats; what to say of it, nothing without formats."""
    if not formats:
        return []
    from bilinear_circuits.report.images import write_images

    folder = Path(out) / FOLDER
    files = write_images(figures, folder, list(dict.fromkeys(formats)))
    return [f"{folder} ({len(files)} images)"]
