"""compare: methods side by side, on the same photos, prompts, seeds and budget."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onbrand.comparison.methods import SOLVERS, USUAL, CompareConfig, Method, read_method
from onbrand.io import command, versions, write_json

SOLVED = {scheduler: name for name, scheduler in SOLVERS.items()}
BASE = CompareConfig()
"""The settings of a comparison where none are given: the paper's."""


def compare(
    photos: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    methods: list[str] | str = USUAL,
    prompts: str | Path | None = None,
    sets: dict[str, str] | None = None,
    held: str | Path | None = None,
    prior: str | Path | None = None,
    split: str | None = None,
    reader: str | None = None,
    clip: str | None = None,
    questions: dict[str, list[str]] | None = None,
    config: CompareConfig = BASE,
    device: str | None = None,
) -> dict[str, Any]:
    """Train and sample methods side by side, check them, and write a table, figures and a page.

    A method is TRAINING/START: stock/noise, plain/mean, mean-window/mean+handoff, text-constant:300/text@few ... Each
    training and each row of pictures is named by its content: what is finished is not made again, and the same command
    started several times at once shares the work. A method that fails is listed, the others go on.

    Args:
        photos: folder of the brand's photos, as for `fit`
        model: model to start from, as for `fit`
        out: folder for all of it: brand/, models/, runs/, pictures/, compare.json, compare.md, figures/, report.html
        methods: separated by commas, each TRAINING[:option]/START[+option][@set]; TRAINING: stock, plain, mean-window,
            mean-constant, text-..., pca3-..., pca3-sampled-..., offset-noise, zero-snr, small-alpha, its options
            steps (:300), :seed1, :t999, :lora8, :lora8-linear, :lora8-attention, :controlnet, :lr0.003, :v; START:
            noise, mean, text, text-rr, text-cca, mean-few50, text-few50 (a prior of 50 photos a class), pca3, image,
            image3, leak, leak-dct, its options handoff, drawn, zeromean, look1 (a look ahead), unprojected, literal,
            pasted, overlay, steps (+8), solver (+unipc), spacing (+trailing), guidance (+g3), DDIM's eta (+eta1)
        prompts: file of requests, as for `generate`; left out: 24 captions of the photos
        sets: other files of requests by name, for methods that end in @name
        held: folder of real pictures that no one learns from, checked as the row "real", and as the model's autoencoder
            returns them, the most that a start or training can reach, as the row "autoencoder"
        prior: the brand's folder; left out: fitted into out/brand
        split: which part of `photos`, as for `fit`
        reader: reader of attributes, as for `check`
        clip: folder of a CLIPModel, or shipped, for CLIP similarity
        questions: title -> methods: the first is compared with each of the others, and all are drawn
        config: what all methods share
        device: cuda, cpu, ...; left out: a GPU where there is one

    Returns:
        What compare.json says: by method and score value, low, high, n.

    Raises:
        ValueError: an unknown method or set, requests that cannot be read or name no class, or inputs that do not go
            together, before anything is trained.
    """
    given = dict(locals())
    from filelock import FileLock
    from tqdm import tqdm

    from onbrand.api._inputs import open_model
    from onbrand.api._report import report
    from onbrand.comparison import tables
    from onbrand.comparison.baselines import prepare, usual_requests
    from onbrand.comparison.jobs import Trials, work
    from onbrand.evaluation.check import open_judges
    from onbrand.models import pipeline
    from onbrand.sampling.requests import read_requests

    methods = methods.split(",") if isinstance(methods, str) else methods
    asked = [read_method(name, config) for name in methods]
    twice = [name for name, count in Counter(methods).items() if count > 1]
    unknown = sorted({name for group in (questions or {}).values() for name in group} - set(methods))
    if not asked or twice or unknown:
        raise ValueError(f"methods are named once each, questions ask for them; got twice {twice}, unknown {unknown}")
    out, files = Path(out), {name: Path(file) for name, file in (sets or {}).items()}
    lacking = {method.requests for method in asked} - {"", *files}
    missing = [str(file) for file in (*files.values(), *((Path(prompts),) if prompts else ())) if not file.is_file()]
    if lacking:
        raise ValueError(f"@set is one of {', '.join(files) or 'none here'}: got {', '.join(sorted(lacking))}")
    if missing:
        raise ValueError(f"no file of requests at {', '.join(missing)}")
    if held is not None and not Path(held).is_dir():
        raise ValueError(f"held is a folder of real pictures; got {held}, which is none")
    open_judges(reader, clip)
    requests = {name: read_requests(file) for name, file in files.items()}
    if prompts:
        requests[""] = read_requests(prompts)
    pipe = open_model(model, device)
    files[""] = Path(prompts) if prompts else usual_requests(photos, split, out / "prompts.jsonl")
    (out / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(out / "locks" / "prepared.lock"):
        priors, fitted, models = prepare(pipe, asked, photos, model, out, prior, split, device)
    for request in (request for rows in requests.values() for request in rows):
        fitted.mean(request.class_name or fitted.class_of(request.prompt))
    weights = pipeline.fingerprint(pipe.unet) + pipeline.fingerprint(pipe.text_encoder)
    trials = Trials(photos, model, out, split, device, reader, clip, files, priors, models, fitted, weights)
    kept = {} if held is None else trials.held(held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # starts that weights were not trained for are the question here
        failed = work(trials.jobs(asked, kept), out / "locks", tqdm.write)

    lines = [trials.line(method, pipe.scheduler) for method in asked]
    table = tables.table_of(lines, kept)
    result: dict[str, Any] = {
        "methods": table,
        "rows": {
            line.name: {"training": line.training, "start": line.start, "set": line.requests,
                        "pictures": str(line.folder.relative_to(out))}
            for line in lines
        },
        "mismatch": {line.name: line.nats for line in lines},
        "failed": failed, "command": command(compare, given),
        "versions": versions(),
    }  # fmt: skip
    write_json(out / "compare.json", result)
    made = [line for line in lines if line.name in table]
    if made:  # where every row failed there is nothing to show but why
        (out / "compare.md").write_text(tables.write(out / "figures", table, lines, questions or {}, by_number(asked)))
        write_json(out / "demo.json", tables.page_plan(lines, kept.get("real")))
        report(out)
    for words, reason in failed.items():
        print(f"failed: {words}: {reason}")
    print(f"wrote {out / 'compare.json'}" + (", compare.md, figures/ and report.html" if made else ": no row was made"))
    return result


def by_number(methods: Sequence[Method]) -> dict[str, dict[str, dict[float, str]]]:
    """{"fine-tuning steps", "sampling steps" or "sampling steps, unipc": {words of a line: {number: method}}}, of
    methods that differ in it alone."""
    found: dict[str, dict[str, dict[float, str]]] = {}
    for label, mark in (("fine-tuning steps", ":"), ("sampling steps", "+")):
        groups: dict[Any, dict[float, Method]] = {}
        for method in methods:
            config, start = method.training.config, method.start
            if mark == ":" and config is None:
                continue
            told = (method.training.base, config, start, method.prior, method.pasted, method.requests)
            steps = config.steps if mark == ":" and config else start.steps
            same = [replace(part, steps=1) if i == (1 if mark == ":" else 2) else part for i, part in enumerate(told)]  # type: ignore[type-var]
            groups.setdefault(tuple(same), {})[steps] = method
        for group in (group for group in groups.values() if len(group) > 1):
            number, first = min(group.items())
            solver = first.start.scheduler if mark == "+" else None
            lines = found.setdefault(f"{label}, {SOLVED[solver]}" if solver else label, {})
            lines[first.name.replace(f"{mark}{number:g}", "", 1)] = {x: m.name for x, m in group.items()}
    return found
