"""A hook of mkdocs: formulas as MathML, made while the site is built, so that pages need no script and no network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)
TAG = re.compile(r"\\tag\{(.*?)\}")


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with each page's HTML."""
    return BLOCK.sub(lambda found: block(html.unescape(found[1])), INLINE.sub(inline, content))


def inline(found: re.Match[str]) -> str:
    """A formula in a line."""
    return str(convert(html.unescape(found[1])))


def block(formula: str) -> str:
    """A formula of its own, its number at the right."""
    number = TAG.search(formula)
    mark = f'<span style="float:right">({number[1]})</span>' if number else ""
    return f'<div style="overflow:auto hidden">{mark}{convert(TAG.sub("", formula), display="block")}</div>'
