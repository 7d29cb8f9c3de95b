"""report: one page about whatever a folder holds."""

from __future__ import annotations

from pathlib import Path


def report(run: str | Path, *, out: str | Path | None = None) -> Path:
    """Write one HTML page about a run, a brand, pictures, or a demo that holds them all.

    The page holds its pictures and styles: it can be mailed, printed, read on a phone, without a network.

    Args:
        run: folder that fit, train or generate wrote, or one with brand/, runs/ and pictures/ in it
        out: the page's file; left out: report.html in that folder

    Returns:
        The page's file.

    Raises:
        ValueError: a folder with nothing to report.
    """
    from onbrand.reporting.folder import read
    from onbrand.reporting.page import render

    path = Path(out) if out is not None else Path(run) / "report.html"
    html = render(read(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    print(f"wrote {path} ({len(html) / 1e6:.1f} MB)")
    return path
