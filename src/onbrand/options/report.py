"""What `report` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from onbrand.errors import OnbrandError
from onbrand.options._base import File, First, check_options

PAGES = (".html", ".htm")
"""Ends of a page's name."""


@dataclass(frozen=True)
class ReportOptions:
    """What `report` can be told.

    Attributes:
        folder: what fit, train, generate or compare wrote, or a folder with brand/, runs/ and images/ in it
        output_file: the page. Default: report.html in that folder
    """

    folder: First
    _: KW_ONLY
    output_file: File | None = None

    def __post_init__(self) -> None:
        check_options(self)
        if self.output_file is not None and not str(self.output_file).lower().endswith(PAGES):
            raise OnbrandError(
                "option",
                f"output_file is a page, so that it takes the place of nothing else: its name ends in "
                f"{' or '.join(PAGES)}; got {self.output_file}: name it so",
            )
