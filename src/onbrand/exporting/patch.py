"""Lines of ours in other people's trainers: their places are found in the user's own copy, by the names it calls."""

from __future__ import annotations

import ast
import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from onbrand.core.trainers import CLASS, OFF
from onbrand.errors import OnbrandError

TRIED = {"diffusers": ("0.40",), "kohya": ("0.10",)}
"""Versions of a trainer whose scripts were patched; those of diffusers were run, too (test_foreign_trainers.py)."""
T = TypeVar("T")
Lines = dict[int, tuple[ast.stmt, list[str]]]
"""Line -> the statement whose indentation is taken, and what is added after that line."""


def patched(trainer: str, script: str, content: bytes, prior: str, start_timestep: int) -> str:
    """A trainer's script with onbrand's lines.

    Args:
        trainer: one of TRIED.
        script: the file's name, for errors.
        content: what is in the file.
        prior: the brand's folder, as the script will find it.
        start_timestep: the first timestep of inference.

    Raises:
        OnbrandError: it is no Python, is patched, changes its noise, or the places are not there once each.
    """
    try:
        tree, text = ast.parse(content), content.decode()
    except (SyntaxError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise OnbrandError("script", f"{script} is no Python in UTF-8 ({error}): give the trainer's script") from error
    imports = [one for one in tree.body if isinstance(one, ast.Import | ast.ImportFrom)]
    ours = [
        one for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) and f"{one.module}.".startswith("onbrand.")
    ]
    if ours:
        raise OnbrandError("script", f"{script} calls onbrand already, line {ours[0].lineno}: undo that patch first")
    try:
        added = PLACES[trainer](tree)
        names = "BrandNoise" if trainer == "diffusers" else "BrandNoise, add_noise"
        begin = f"brand_noise = BrandNoise({json.dumps(prior, ensure_ascii=False)}, start_timestep={start_timestep})"
        last = _only(imports[-1:], "an import")
        added[last.end_lineno or 0] = last, [f"from onbrand.core import {names}", "", begin]
    except _NoPlaceError as error:
        raise OnbrandError(
            "script", f"{script} cannot be patched as one of {trainer}: {error}. docs/guides/own-loop.md has the lines"
        ) from error
    lines = io.StringIO(text, newline="").readlines()  # ends of lines as Python has them, kept as they are
    end = "\r\n" if lines[0].endswith("\r\n") else "\n"
    for number, (statement, words) in sorted(added.items(), reverse=True):
        indent = lines[statement.lineno - 1][: statement.col_offset]
        lines[number:number] = [f"{indent}{word}{end}" if word else end for word in words]
    return "".join(lines)


def difference(script: Path, former: str, text: str) -> str:
    """The unified diff between two texts of a file, which `git apply` and `patch -p1` read."""
    one, other = (io.StringIO(each, newline="").readlines() for each in (former, text))
    name = script.as_posix().lstrip("/")
    lines = difflib.unified_diff(one, other, f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _diffusers(tree: ast.Module) -> Lines:
    """Of a loop as the examples of diffusers have it: after the DataLoader, and before add_noise."""
    spans = [
        (one, block[i:end], block[end])
        for block in _blocks(tree)
        for i, one in enumerate(block)
        if isinstance(one, ast.Assign) and _calls(one, "randn_like")
        if (end := next((j for j in range(i + 1, len(block)) if _calls(block[j], "add_noise")), 0))
    ]
    draw, before, last = _only(spans, "one statement `noise = torch.randn_like(latents)` with add_noise below it")
    match draw:
        case ast.Assign(targets=[ast.Name(noise)], value=ast.Call(args=[ast.Name(latents), *_]) as call):
            plain = call is _calls(draw, "randn_like")[0]
        case _:
            plain = False
    if not plain:
        raise _NoPlaceError(f"line {draw.lineno} draws more than torch.randn_like(latents): offset noise must be off")
    if before[-1].end_lineno == last.lineno:
        raise _NoPlaceError(f"line {last.lineno} holds two statements")
    others = [node for one in (*before[1:], last) for node in _unguarded(one)]
    for node in others:
        if isinstance(node, ast.Name) and node.id == noise and isinstance(node.ctx, ast.Store):
            raise _NoPlaceError(f"line {node.lineno} changes the noise: offset noise must be off")
    adds = [node for node in others if isinstance(node, ast.Call) and _name(node.func) == "add_noise"]
    add = _only(adds, "one add_noise")
    match add:
        case ast.Call(ast.Attribute(scheduler), [x0, eps, ast.Name(timesteps)]):
            right = noise in _names(eps) and latents in _names(x0) and "args" in _names(tree)
        case _:
            right = False
    if not right:
        raise _NoPlaceError(f"line {add.lineno} must add_noise(latents, noise, timesteps), of a script with its args")
    loaders = [
        one for one in ast.walk(tree) if isinstance(one, ast.Assign) and _name_of_call(one.value) == "DataLoader"
    ]
    loops = [
        (loop, loader)
        for loop in ast.walk(tree)
        if isinstance(loop, ast.For) and draw in ast.walk(loop)
        for loader in loaders
        if isinstance(loader.targets[0], ast.Name) and loader.targets[0].id in _names(loop.iter)
    ]
    loop, loader = _only(loops, "one loop over a DataLoader around that statement")
    batch = loop.target.elts[-1] if isinstance(loop.target, ast.Tuple) else loop.target
    name = ast.unparse(loader.targets[0])
    values = f'{noise}, {latents}, {timesteps}, {ast.unparse(batch)}["{CLASS}"], {ast.unparse(scheduler)}, args'
    return {
        loader.end_lineno or 0: (loader, [f"brand_noise.label({name}, args.caption_column)"]),
        before[-1].end_lineno or 0: (draw, [f"{noise} = brand_noise({values})"]),
    }


def _kohya(tree: ast.Module) -> Lines:
    """Of a script of kohya's that calls get_noise_noisy_latents_and_timesteps: after that call."""
    function = "get_noise_noisy_latents_and_timesteps"
    calls = [one for one in ast.walk(tree) if isinstance(one, ast.Assign) and _name_of_call(one.value) == function]
    call = _only(calls, f"one call of {function} (train_network.py has it, train_util.py only defines it)")
    match call:
        case ast.Assign([ast.Tuple([noise, noisy, timesteps, *_])], ast.Call(args=[args, scheduler, latents])):
            n, x, t, a, s, x0 = map(ast.unparse, (noise, noisy, timesteps, args, scheduler, latents))
        case _:
            raise _NoPlaceError(f"line {call.lineno} calls {function} otherwise than kohya's scripts do")
    return {
        call.end_lineno or 0: (
            call,
            [
                f'{n} = brand_noise({n}, {x0}, {t}, batch["captions"], {s}, {a})',
                f"{x} = add_noise({x0}, {n}, {s}.alphas_cumprod[{t}.cpu()])",
            ],
        )
    }


class _NoPlaceError(Exception):
    """Why a script does not have the places that are patched."""


PLACES: dict[str, Callable[[ast.Module], Lines]] = {"diffusers": _diffusers, "kohya": _kohya}


def _only(items: Sequence[T], what: str) -> T:
    """The one item; _NoPlaceError if there is none, or several."""
    if len(items) != 1:
        raise _NoPlaceError(f"it must have {what}, and has {len(items) or 'none'}")
    return items[0]


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every list of statements, at any depth."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, name, None), list):
                yield block


def _unguarded(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement, but for what runs only if a setting of OFF is on, which is refused at run time."""
    yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If):
        settings = {part.attr for part in ast.walk(node.test) if isinstance(part, ast.Attribute)}
        children = node.orelse if settings and settings <= set(OFF) else children
    for child in children:
        yield from _unguarded(child)


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """The calls of a function of this name."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func) == name]


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _name_of_call(node: ast.AST) -> str:
    return _name(node.func) if isinstance(node, ast.Call) else ""


def _name(function: ast.AST) -> str:
    """The last part of a dotted name."""
    return getattr(function, "attr", getattr(function, "id", ""))
