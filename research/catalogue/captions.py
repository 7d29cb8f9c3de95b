"""Words for what a garment is: one description a pair, varied, naming all of what its `named` column lists."""

from __future__ import annotations

import numpy as np

Table = dict[str, tuple[str, ...]]

KIND: Table = {
    "t-shirt": ("t-shirt", "tee"),
    "long-sleeve top": ("long-sleeve top", "long-sleeved top"),
    "sleeveless top": ("sleeveless top", "tank top"),
    "trousers": ("trousers", "pants"),
    "shorts": ("shorts",),
    "skirt": ("skirt",),
    "dress": ("dress",),
}
PRINT: Table = {
    "plain": ("plain {c}", "solid {c}"),
    "striped": ("{c} and {s} striped", "striped {c} and {s}"),
    "pinstriped": ("{c} and {s} pinstriped", "pinstriped {c} and {s}"),
    "checked": ("{c} and {s} checked", "{c} and {s} gingham"),
    "dotted": ("{c} and {s} polka-dot", "{c} and {s} dotted"),
    "colour-block": ("{c} and {s} colour-block", "colour-blocked {c} and {s}"),
}
AFTER: Table = {
    "plain": (),
    "striped": ("with {s} horizontal stripes", "with {s} stripes"),
    "pinstriped": ("with {s} pinstripes", "with {s} vertical stripes"),
    "checked": ("with {s} checks",),
    "dotted": ("with {s} polka dots", "with {s} dots"),
    "colour-block": ("with a {s} lower half", "with a {s} colour block"),
}
LENGTH: Table = {
    "cropped": ("cropped",),
    "regular": ("hip-length", "regular-length"),
    "long": ("longline", "tunic-length"),
    "full-length": ("full-length",),
    "thigh-length": ("thigh-length", "short-cut"),
    "mini": ("mini",),
    "knee-length": ("knee-length",),
    "midi": ("midi",),
    "maxi": ("maxi",),
}
SLEEVE: Table = {
    "sleeveless": ("sleeveless", "without sleeves"),
    "short": ("short-sleeved", "with short sleeves"),
    "long": ("long-sleeved", "with long sleeves"),
}
NECKLINE: Table = {
    "crew": ("crew neck", "round neck"),
    "v-neck": ("v-neck", "v-neckline"),
    "scoop": ("scoop neck", "scooped neckline"),
    "square": ("square neck", "square neckline"),
    "boat": ("boat neck", "wide boat neckline"),
}
TABLES: dict[str, Table] = {"kind": KIND, "length": LENGTH, "sleeve": SLEEVE, "neckline": NECKLINE}
FIT: dict[str, Table] = {
    "tops": {"slim": ("slim-fit", "fitted"), "regular": ("regular-fit", "classic"), "loose": ("loose", "relaxed")},
    "trousers": {"slim": ("slim", "narrow"), "regular": ("straight-leg", "straight"), "loose": ("wide-leg", "wide")},
    "shorts": {"slim": ("slim-fit", "fitted"), "regular": ("regular-fit", "classic"), "loose": ("loose", "wide")},
    "skirt": {"slim": ("pencil", "straight"), "regular": ("a-line", "gently flared"), "loose": ("full", "wide flared")},
    "dress": {"slim": ("fitted", "straight"), "regular": ("a-line", "gently flared"), "loose": ("full-skirted",)},
}


def words(attribute: str, row: dict[str, str]) -> tuple[str, ...]:
    """Every phrase that may stand for an attribute of a row; a caption that names it holds one of them."""
    value, fills = row[attribute], {"c": row["colour"], "s": row["second_colour"]}
    if attribute in ("colour", "second_colour"):
        return (value,)
    if attribute == "fit":
        return FIT.get(row["kind"], FIT["tops"])[value]
    if attribute in TABLES:
        return TABLES[attribute][value]
    return tuple(phrase.format(**fills) for phrase in PRINT[value] + AFTER[value])


def describe(row: dict[str, str], rng: np.random.Generator) -> tuple[str, list[str]]:
    """A description, and the attributes it names: kind, colour and print always, the others three times in four."""

    def one(phrases: tuple[str, ...]) -> str:
        return phrases[int(rng.integers(len(phrases)))]

    kind, named = row["kind"], ["kind", "colour"]
    before, after = [], []
    if rng.random() < 0.75:
        named.append("fit")
        before.append(one(words("fit", row)))
    if rng.random() < 0.75:
        named.append("length")
        before.append(one(words("length", row)))
    rng.shuffle(before)
    if row["print"] == "plain":
        colour = one(PRINT["plain"]) if rng.random() < 0.4 else "{c}"
        named += ["print"] if colour != "{c}" else []
    else:
        named += ["print", "second_colour"]
        if rng.random() < 0.5:
            colour = one(PRINT[row["print"]])
        else:
            colour = "{c}"
            after.append(one(AFTER[row["print"]]))
    before.insert(int(rng.integers(len(before) + 1)) if "and" not in colour else len(before), colour)
    if kind == "dress" and rng.random() < 0.75:
        named.append("sleeve")
        phrase = one(SLEEVE[row["sleeve"]])
        (after if phrase.startswith("with") else before).append(phrase)
    if row["neckline"] != "none" and rng.random() < 0.75:
        named.append("neckline")
        after.append(f"with a {one(NECKLINE[row['neckline']])}")
    rng.shuffle(after)
    text = " ".join([*before, one(KIND[kind])]).format(c=row["colour"], s=row["second_colour"])
    tail = _listed([phrase.format(c=row["colour"], s=row["second_colour"]) for phrase in after])
    article = "" if kind in ("trousers", "shorts") else "an " if text[0] in "aeiou" else "a "
    if rng.random() < 0.25:
        article = {"trousers": "a pair of ", "shorts": "a pair of "}.get(kind, article)
    return f"{article}{text}{tail}", named


def _listed(phrases: list[str]) -> str:
    if not phrases:
        return ""
    # "with x and with y" -> "with x and y"; "without" keeps its own word
    first, *rest = phrases
    rest = [p.removeprefix("with ") if first.startswith("with ") and p.startswith("with ") else p for p in rest]
    return " " + (first if not rest else ", ".join([first, *rest[:-1]]) + " and " + rest[-1])
