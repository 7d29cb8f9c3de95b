"""The page in gradio: what is chosen, a button a step, and what is shown of the brand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
import pandas

from onbrand.errors import OnbrandError
from onbrand.ui import views
from onbrand.ui.jobs import Jobs
from onbrand.ui.steps import AS_SAID, NEW, SAMPLES, STOCK, Steps
from onbrand.ui.studio import Brand, Studio

EVERY = 1.5
"""Seconds between looks at what has changed."""
STARTS = ("mean", "text", "pca")
CSS = """
footer {display: none !important}
.bar {background: #d4d4d8; border-radius: 4px; height: 8px; overflow: hidden; margin: 6px 0}
.bar div {background: #2563eb; height: 100%}
.card {border: 1px solid #d4d4d8; border-left: 4px solid #a1a1aa; border-radius: 6px; padding: 10px 14px; margin: 6px 0}
.card.problem {border-left-color: #c2410c} .card.warning {border-left-color: #ca8a04}
.card.fine {border-left-color: #15803d}
.card td, .card th {padding: 2px 14px 2px 0; text-align: left}
.said {white-space: pre-wrap; font-family: ui-monospace, monospace; font-size: 13px; max-height: 240px; overflow: auto}
.wrong {color: #b91c1c; font-weight: 600}
svg {max-width: 640px; width: 100%; height: auto; background: white}
"""
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""Fonts of the machine: none is fetched."""


def build(studio: Studio, jobs: Jobs) -> gr.Blocks:
    """The page. What it shows is read off the brand's folder whenever that has changed; it keeps nothing itself."""
    steps = Steps(studio, jobs)
    views_of: list[tuple[Sequence[gr.components.Component], Callable[[Brand], Sequence[Any]]]] = []
    with gr.Blocks(title="onbrand", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# onbrand\nYour photos' look, kept. Everything is read from and written to `{studio.root}`.")
        with gr.Row():
            name = gr.Dropdown(label="Brand: choose one, or type a new name", allow_custom_value=True, scale=4)
            stop = gr.Button("Stop", variant="stop", scale=1, min_width=90)
        status = gr.HTML()
        stamp, stamp_of_run = gr.Textbox(visible=False), gr.Textbox(visible=False)
        former = gr.State()

        with gr.Tab("1 Photos and model"):
            gr.Markdown(
                "Photos: a folder in the one above, with captions or without. Model: one of the list, or a Hub id "
                f"(`owner/name`), which is then downloaded. Without photos, take {SAMPLES} of the embedded catalogue."
            )
            with gr.Row():
                photos = gr.Dropdown(label="Photos", allow_custom_value=True)
                model = gr.Dropdown(label="Model", allow_custom_value=True)
            with gr.Row():
                look = gr.Button("Look at them", variant="primary")
                sample = gr.Button("Take the embedded catalogue")
            seen = gr.HTML()
            refused = gr.Dataframe(headers=["file", "why it will not be read"], wrap=True, visible=False)
            pictures = _gallery("Some of the photos", 8)
            views_of.append(([seen, refused], lambda brand: [views.seen(brand), _refused(brand)]))
            views_of.append(([pictures], lambda brand: [_pictures(views.photographs(studio, brand))]))

        with gr.Tab("2 Fit"):
            gr.Markdown("What your photos have in common, for each class of image: its mean, and how they differ.")
            fit = gr.Button("Fit", variant="primary")
            fitted, means = gr.HTML(), _gallery("The mean of each class", 6)
            views_of.append(([fitted, means], lambda brand: [views.fitted(brand), _pictures(views.means(brand))]))

        with gr.Tab("3 Diagnosis"):
            gr.Markdown("How much of your photos the model saw while it was trained, and does not see in pure noise.")
            diagnose = gr.Button("Diagnose", variant="primary")
            diagnosis = gr.HTML()
            views_of.append(([diagnosis], lambda brand: [views.diagnosis(brand)]))

        with gr.Tab("4 Images"):
            prompts = gr.Textbox(label="Descriptions, one a line", lines=4)
            with gr.Row():
                class_name = gr.Dropdown(label="Class", choices=[AS_SAID], value=AS_SAID)
                start = gr.Dropdown(label="Start", choices=list(STARTS), value=STARTS[0])
                weights = gr.Dropdown(label="Weights", choices=[STOCK], value=STOCK)
                seed = gr.Number(label="First seed", value=0, precision=0, minimum=0)
                guidance = gr.Number(label="Guidance scale", value=7.5, minimum=0)
            generate = gr.Button("Make them, from noise and from this start", variant="primary")
            words = gr.HTML()
            with gr.Row():
                before, after = _gallery("Before: from noise", 2), _gallery("After: from the brand's start", 2)
            views_of.append(([words, before, after], _pair))

        with gr.Tab("5 Check"):
            with gr.Row():
                images = gr.Dropdown(label="Images", scale=3)
                check = gr.Button("Check them", variant="primary", scale=1)
            verdict = gr.HTML()
            gr.Markdown(
                "Click a row to see its image, a heading to sort. Background: green where it has the brand's colour, "
                "red where not. Blue: the product's box and centre. Grey: what the box keeps within, and where the "
                "centre may lie."
            )
            with gr.Row():
                rows = gr.Dataframe(interactive=False, show_search="search", scale=3, max_height=480)
                overlay = gr.Image(label="The brand's ranges", interactive=False, scale=2, height=480, visible=False)

        with gr.Tab("6 Train"):
            gr.Markdown("Not needed to begin with. Trains with the start that will make the images.")
            with gr.Row():
                run = gr.Dropdown(label="Run", choices=[NEW], value=NEW)
                method = gr.Dropdown(label="What learns", choices=["lora", "full"], value="lora")
                count = gr.Number(label="Steps", value=300, precision=0, minimum=1)
                rate = gr.Number(label="Learning rate", value=1e-4, minimum=0)
                batch = gr.Number(label="Images a step", value=4, precision=0, minimum=1)
                every = gr.Number(label="Steps between validations", value=100, precision=0, minimum=0)
            train = gr.Button("Train, or go on with this run", variant="primary")
            losses, validation = gr.HTML(), _gallery("Validation images, the latest first", 2)

        with gr.Tab("7 Report"):
            report = gr.Button("Write the report", variant="primary")
            link = gr.HTML()
            files = gr.File(label="To take along", file_count="multiple", interactive=False)
            views_of.append(([link, files], lambda brand: [views.link(brand), views.downloads(brand)]))

        def begin() -> list[Any]:
            brands = studio.brands()
            chosen = jobs.running.brand if jobs.running else next(iter(brands), None)
            return [gr.Dropdown(choices=brands, value=chosen), *remembered(chosen)]

        def remembered(chosen: str | None) -> list[Any]:
            settings = brand.settings if (brand := studio.known(chosen)) else {}
            return [
                gr.Dropdown(choices=studio.photos(), value=settings.get("photos")),
                gr.Dropdown(choices=studio.models(), value=settings.get("model", "tiny")),
                settings.get("prompts", ""),
                settings.get("guidance", 7.5),
            ]

        def tick(chosen: str | None, of_run: str | None) -> tuple[str, str, str]:
            brand = studio.known(chosen)
            if brand is None:
                return views.status(jobs, chosen), "", ""
            return views.status(jobs, chosen), brand.stamp(), brand.stamp_of_run(of_run) if of_run in brand.runs else ""

        def show(chosen: str | None, of_images: str | None, of_run: str | None, former: Any) -> list[Any]:
            brand = studio.known(chosen)
            if brand is None:
                return [gr.skip()] * len(targets)
            classes = brand.fit.get("classes", {})
            reads = any(one.get("r2") is not None for one in classes.values())
            trained = [one for one in brand.runs if (brand.run(one) / "model").is_dir()]
            sets, runs = brand.image_sets, brand.runs
            of_images = of_images if former == (sets, runs) and of_images in sets else next(iter(sets), None)
            of_run = of_run if former == (sets, runs) and of_run in (NEW, *runs) else next(iter(runs), NEW)
            return [
                *(value for _, fill in views_of for value in fill(brand)),
                gr.Dropdown(choices=[AS_SAID, *classes]),
                gr.Dropdown(choices=[one for one in STARTS if reads or one != "text"]),
                gr.Dropdown(choices=[STOCK, *trained]),
                gr.Dropdown(choices=sets, value=of_images),
                gr.Dropdown(choices=[NEW, *runs], value=of_run),
                (sets, runs),
            ]

        def show_check(chosen: str | None, of_images: str | None) -> tuple[str, Any]:
            brand = studio.known(chosen)
            content = views.content_of(brand, of_images) if brand else {}
            headers, table = views.failures(content)
            return views.verdict(content), pandas.DataFrame(table, columns=headers)

        def show_overlay(chosen: str | None, of_images: str, event: gr.SelectData) -> Any:
            brand = studio.known(chosen)
            with in_words():
                image = views.overlay(brand, of_images, str(event.row_value[0])) if brand else None
            return gr.Image(value=image, visible=image is not None)

        def show_run(chosen: str | None, of_run: str | None) -> tuple[str, Any]:
            brand = studio.known(chosen)
            if brand is None or of_run not in brand.runs:
                return "", _pictures([])
            return views.losses(brand, of_run), _pictures(views.validation(brand, of_run))

        shown = [component for components, _ in views_of for component in components]
        targets = [*shown, class_name, start, weights, images, run, former]
        page.load(begin, None, [name, photos, model, prompts, guidance])
        name.change(remembered, name, [photos, model, prompts, guidance], show_progress="hidden")
        gr.Timer(EVERY).tick(tick, [name, run], [status, stamp, stamp_of_run], show_progress="hidden")
        for changed in (stamp.change, name.change):
            done = changed(show, [name, images, run, former], targets, show_progress="hidden")
            done.then(show_check, [name, images], [verdict, rows], show_progress="hidden")
        images.input(show_check, [name, images], [verdict, rows], show_progress="hidden")
        stamp_of_run.change(show_run, [name, run], [losses, validation], show_progress="hidden")
        rows.select(show_overlay, [name, images], overlay)
        stop.click(lambda: gr.Info(jobs.stop()))
        look.click(_worded(steps.look), [name, photos, model])
        sampled = sample.click(_worded(steps.sample), name)
        sampled.then(remembered, name, [photos, model, prompts, guidance])
        fit.click(_worded(steps.fit), [name, photos, model])
        diagnose.click(_worded(steps.diagnose), [name, model])
        generate.click(_worded(steps.generate), [name, model, prompts, class_name, start, weights, seed, guidance])
        check.click(_worded(steps.check), [name, images, photos])
        train.click(_worded(steps.train), [name, photos, model, run, method, count, rate, batch, every])
        report.click(_worded(steps.report), name)
    return page


def _gallery(label: str, columns: int) -> gr.Gallery:
    return gr.Gallery(label=label, columns=columns, visible=False, object_fit="contain")


def _pictures(pictures: Sequence[Any]) -> gr.Gallery:
    return gr.Gallery(value=pictures, visible=bool(pictures))


def _pair(brand: Brand) -> list[Any]:
    words, before, after = views.pair(brand)
    return [words, _pictures(before), _pictures(after)]


def _refused(brand: Brand) -> gr.Dataframe:
    rows = views.refused(brand)
    return gr.Dataframe(value=rows, visible=bool(rows))


def _worded(step: Callable[..., None]) -> Callable[..., None]:
    def asked(*choices: Any) -> None:
        with in_words():
            step(*choices)

    return asked


@contextmanager
def in_words() -> Iterator[None]:
    """What a step refuses is shown on the page."""
    try:
        yield
    except (OnbrandError, OSError) as error:
        raise gr.Error(" ".join(str(error).split()), print_exception=False) from error
