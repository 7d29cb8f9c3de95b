"""compare: methods side by side, on the same photos, prompts, seeds and budget."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onbrand.api._output import works_in
from onbrand.comparison.methods import Method, read_methods
from onbrand.comparison.presets import solvers
from onbrand.errors import OnbrandError
from onbrand.io import plain, versions, write_json, write_text
from onbrand.options._verb import command, verb
from onbrand.options.compare import CompareOptions


@verb(CompareOptions)
@works_in("output_dir", "compare fewer methods at a time, or at a smaller batch_size", use="shared")
def compare(options: CompareOptions) -> dict[str, Any]:
    """Train and sample methods side by side, check them, and write a table, figures and a page.

    A method is a preset, TRAINING/START, as plain/mean or text-constant:300/text@few (`onbrand compare --list` shows
    them all), or one of your own in a YAML file: {name: {train: {...}, generate: {...}}}. Each training and each row of
    images is named by its content: what is finished is not made again, and the same command started several times at
    once shares the work. A method that fails is listed, the others go on.

    Returns:
        What compare.json says: by method and score value, low, high, n.

    Raises:
        OnbrandError: an unknown method, key or set, requests that cannot be read or name no class, or inputs that do
            not go together, before anything is trained.
    """
    from filelock import FileLock
    from tqdm import tqdm

    from onbrand.api._inputs import open_model
    from onbrand.api._report import report
    from onbrand.comparison import tables
    from onbrand.comparison.baselines import default_requests, prepare
    from onbrand.comparison.jobs import Trials, work
    from onbrand.evaluation.check import open_judges
    from onbrand.models import pipeline
    from onbrand.models.families import encoders_of
    from onbrand.sampling.requests import read_requests

    prompts, split, device, questions = options.prompts, options.split, options.device, options.questions
    photos, model, real = options.images, options.model, options.reference_images
    methods = read_methods(options.methods, options)
    names = Counter(method.name for method in methods)
    twice = [name for name, count in names.items() if count > 1]
    unknown = sorted({name for group in questions.values() for name in group} - set(names))
    if not methods or twice or unknown:
        raise OnbrandError(
            "comparison", f"methods are named once each, questions ask for them; got twice {twice}, unknown {unknown}"
        )
    out, files = Path(options.output_dir), {name: Path(file) for name, file in options.prompt_sets.items()}
    lacking = {method.requests for method in methods} - {"", *files}
    missing = [str(file) for file in (*files.values(), *((Path(prompts),) if prompts else ())) if not file.is_file()]
    if lacking:
        raise OnbrandError(
            "comparison", f"@set is one of {', '.join(files) or 'none here'}: got {', '.join(sorted(lacking))}"
        )
    if missing:
        raise OnbrandError("comparison", f"no file of requests at {', '.join(missing)}")
    if real is not None and not Path(real).is_dir():
        raise OnbrandError("comparison", f"reference_images is a folder of real images; got {real}, which is none")
    open_judges(options.attributes, options.clip)
    requests = {name: read_requests(file) for name, file in files.items()}
    if prompts:
        requests[""] = read_requests(prompts)
    pipe = open_model(model, device, config=options.model_config)
    for method in methods:
        check_solver(method, pipe.scheduler)
    files[""] = Path(prompts) if prompts else default_requests(photos, split, out / "prompts.jsonl")
    (out / "locks").mkdir(parents=True, exist_ok=True)
    if (out / "pictures").is_dir() and not (out / "images").exists():  # its name in schema 1
        (out / "pictures").rename(out / "images")
    with FileLock(out / "locks" / "prepared.lock"):
        priors, fitted, models = prepare(
            pipe, methods, photos, model, out, options.prior, split, device, options.model_config
        )
    for request in (request for rows in requests.values() for request in rows):
        fitted.mean(request.class_name or fitted.class_of(request.prompt))
    weights = "".join(map(pipeline.fingerprint, (pipe.unet, *encoders_of(pipe).values())))
    trials = Trials(
        photos, model, out, split, device, options.attributes, options.clip, files, priors, models, fitted, weights,
        options.model_config,
    )  # fmt: skip
    with FileLock(out / "locks" / "prepared.lock"):
        references = {} if real is None else trials.references(real)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # starts that weights were not trained for are the question here
        failed = work(trials.jobs(methods, references), out / "locks", tqdm.write)

    lines = [trials.line(method, pipe.scheduler) for method in methods]
    table = tables.table_of(lines, references)
    result: dict[str, Any] = {
        "methods": table,
        "rows": {
            line.name: {"training": line.training, "start": line.start, "set": line.requests,
                        "images": str(line.folder.relative_to(out))}
            for line in lines
        },
        "mismatch": {line.name: line.nats for line in lines},
        "failed": failed, "command": command("compare", options),
        "versions": versions(),
    }  # fmt: skip
    write_json(out / "compare.json", result)
    finished = any(line.name in table for line in lines)
    if finished:  # else there is nothing to show but why
        write_text(out / "compare.md", tables.write(out / "figures", table, lines, questions, by_number(methods)))
        write_json(out / "demo.json", tables.page_plan(lines, references.get("real")))
        report(out)
    for words, reason in failed.items():
        print(f"failed: {plain(words)}: {plain(reason)}")
    rest = ", compare.md, figures/ and report.html" if finished else ": no row was made"
    print(f"wrote {out / 'compare.json'}{rest}")
    return result


def check_solver(method: Method, scheduler: object) -> None:
    """OnbrandError if a method's sampler, spacing or sigmas do not go with the model's scheduler."""
    from onbrand.models.scheduler import with_options

    start = method.start
    try:
        with_options(scheduler, start.scheduler, start.timestep_spacing, start.use_karras_sigmas)
    except OnbrandError as error:
        raise OnbrandError("method", f"method {method.name!r}: {error}") from error


def by_number(methods: Sequence[Method]) -> dict[str, dict[str, dict[float, str]]]:
    """{"fine-tuning steps", "sampling steps" or "sampling steps, unipc": {words of a line: {number: method}}}, of
    methods that differ in it alone."""
    curves: dict[str, dict[str, dict[float, str]]] = {}
    short = solvers()
    for label, mark in (("fine-tuning steps", ":"), ("sampling steps", "+")):
        groups: dict[Any, dict[float, Method]] = {}
        for method in methods:
            config, start = method.training.config, method.start
            if mark == ":" and config is None:
                continue
            if mark == ":" and config is not None:
                steps, config = config.max_train_steps, replace(config, max_train_steps=1)
            else:
                steps, start = start.num_inference_steps, replace(start, num_inference_steps=1)
            same = (method.training.base, config, start, method.prior, method.paste, method.requests)
            groups.setdefault(same, {})[steps] = method
        for group in (group for group in groups.values() if len(group) > 1):
            number, first = min(group.items())
            solver = first.start.scheduler if mark == "+" else None
            lines = curves.setdefault(f"{label}, {short.get(solver, solver)}" if solver else label, {})
            lines[first.name.replace(f"{mark}{number:g}", "", 1)] = {x: m.name for x, m in group.items()}
    return curves
