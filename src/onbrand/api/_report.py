"""report: one page about whatever a folder holds."""

from __future__ import annotations

from pathlib import Path

from onbrand.api._output import works_in
from onbrand.io import write_text
from onbrand.options._verb import verb
from onbrand.options.report import ReportOptions


@verb(ReportOptions)
@works_in("output_file, folder", "close other programs", use="visited")
def report(options: ReportOptions) -> Path:
    """Write one HTML page about a run, a brand, images, or a folder that holds them all.

    The page holds its images and styles: it can be mailed, printed, read on a phone, without a network.

    Returns:
        The page's file.

    Raises:
        OnbrandError: a folder with nothing to report.
    """
    from onbrand.reporting.folder import read
    from onbrand.reporting.page import render

    path = Path(options.output_file) if options.output_file is not None else Path(options.folder) / "report.html"
    html = render(read(options.folder))
    write_text(path, html)
    print(f"wrote {path} ({len(html) / 1e6:.1f} MB)")
    return path
