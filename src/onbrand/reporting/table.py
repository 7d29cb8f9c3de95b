"""The table that `check` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onbrand.evaluation.properties import ALL
from onbrand.io import plain

REFUSED = 20
"""Images that cannot be opened, and are named in the table: the first ones."""


def lines_of(content: Mapping[str, Any]) -> list[str]:
    """The table's lines: one a property or measure, with its interval and the value of the held-out photos.

    Args:
        content: what check.json says.
    """
    rows = {"all": {"title": ALL[0], **content["all"]}, **content["properties"]}
    measures, attributes = content["measures"], content["attributes"]
    attributes = {plain(name): entry for name, entry in attributes.items()}
    width = max(len(entry["title"]) for entry in [*rows.values(), *measures.values()])
    lines = [
        f"{content['count']} images, {content['n_reference']} photos learned from",
        "",
        f"{'':<{width}}    rate  95 % interval   held-out photos",
    ]
    for name, entry in rows.items():
        lines.append(_rate(entry["title"], entry, width) + _held_out(content, name, "6.1%"))
    lines += [_rate(f"of these, {name}", entry, width) for name, entry in attributes.items()]
    for name, entry in measures.items():
        interval = f"{entry['value']:6.3g}  {entry['low']:6.3g} to {entry['high']:6.3g}"
        lines.append(f"{entry['title']:<{width}}  {interval}{_held_out(content, name, '6.3g')}")
    refused = content.get("refused", ())
    lines += ["", f"{len(refused)} cannot be opened, and pass nothing:"] if refused else []
    lines += [f"  {entry['file']}: {entry['reason']}" for entry in refused[:REFUSED]]
    lines += [f"  ... and {len(refused) - REFUSED} more, all in check.json"] if len(refused) > REFUSED else []
    return lines


def _rate(title: str, entry: Mapping[str, Any], width: int) -> str:
    return f"{title:<{width}}  {entry['rate']:6.1%}  {entry['low']:6.1%} to {entry['high']:6.1%}"


def _held_out(content: Mapping[str, Any], name: str, form: str) -> str:
    value = content["held_out"].get(name)
    return "" if value is None else f"  {value:{form}}"
