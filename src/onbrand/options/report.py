"""What `report` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from onbrand.options._base import File, First, check_options


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
