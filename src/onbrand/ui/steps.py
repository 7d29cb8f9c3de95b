"""The seven steps as jobs: what the page asks for, as commands of onbrand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onbrand.errors import OnbrandError
from onbrand.ui.jobs import Jobs
from onbrand.ui.studio import LOOK, Brand, Studio

AS_SAID, STOCK, NEW = "as the description says", "the model as it is", "a new run"
"""Choices that are no names."""
SAMPLE = "garments"
"""Folder of the embedded catalogue."""
SAMPLES = 240
DESCRIPTIONS = (
    "female garment, a red dress without sleeves\nfemale person wearing garment, a blue top with long sleeves\n"
    "male garment, black trousers\nmale person wearing garment, a white shirt"
)


@dataclass(frozen=True)
class Steps:
    """Each step checks what it is given, remembers it, and adds a job. OnbrandError: it cannot be done, and why."""

    studio: Studio
    jobs: Jobs

    def look(self, name: str, photos: str | None, model: str | None) -> None:
        """What the photos and the model are."""
        brand, where, what = self._chosen(name, photos, model)
        command = ["onbrand.ui.look", where, what, str(brand.path / LOOK)]
        self.jobs.add("look", brand.name, [command], brand.log("look"))

    def sample(self, name: str) -> None:
        """Writes part of the embedded catalogue as a folder of photos."""
        brand = self.studio.brand(name)
        brand.choose(photos=SAMPLE, model="tiny", guidance=1.5, prompts=DESCRIPTIONS)
        folder = str(self.studio.root / SAMPLE)
        self._add(brand, "data", ["data", "garments", "--output_dir", folder, "--num_images", str(SAMPLES)])

    def fit(self, name: str, photos: str | None, model: str | None) -> None:
        """Fits the brand's prior."""
        brand, where, what = self._chosen(name, photos, model)
        self._add(brand, "fit", ["fit", where, "--model", what, "--output_dir", str(brand.prior)])

    def diagnose(self, name: str, model: str | None) -> None:
        """Measures what leaks."""
        brand = self._fitted(name)
        self._add(brand, "diagnose", ["diagnose", str(brand.prior), "--model", self.studio.model_of(model)])

    def generate(
        self, name: str, model: str | None, prompts: str, class_name: str, start: str, weights: str, seed: float,
        guidance: float,
    ) -> None:  # fmt: skip
        """Makes the same images twice: from noise, and from the brand's start."""
        brand = self._fitted(name)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise OnbrandError("option", "write what the images should show, one description a line")
        brand.choose(prompts=prompts, guidance=guidance)
        number = brand.next_name("images")
        requests = brand.write_requests(number, lines, None if class_name == AS_SAID else class_name, int(seed))
        what = self.studio.model_of(model) if weights == STOCK else str(brand.run(weights))
        shared = ["--model", what, "--prior", str(brand.prior), "--guidance_scale", f"{guidance:g}"]
        commands = [
            ["generate", str(requests), *shared, "--start", one, "--output_dir", str(brand.images(f"{number}-{one}"))]
            for one in dict.fromkeys(("noise", start))
        ]
        self._add(brand, f"images {number}", *commands)

    def check(self, name: str, images: str | None, photos: str | None) -> None:
        """Checks a folder of images against the photos."""
        brand = self._fitted(name)
        if images not in brand.image_sets:
            raise OnbrandError("option", "choose images first; step 4 makes them")
        against = str(self.studio.path_of(photos))
        command = ["check", str(brand.images(images)), "--against", against, "--prior", str(brand.prior)]
        self._add(brand, f"check {images}", command)

    def train(
        self, name: str, photos: str | None, model: str | None, run: str, method: str, steps: float, rate: float,
        batch: float, validation_steps: float,
    ) -> None:  # fmt: skip
        """Begins a run, or goes on with one."""
        self._fitted(name)
        brand, where, what = self._chosen(name, photos, model)
        number = brand.next_name("runs") if run == NEW else run
        brand.run(number).mkdir(parents=True, exist_ok=True)  # so that the next new one has another number
        settings = {
            "method": method, "max_train_steps": int(steps), "learning_rate": rate, "train_batch_size": int(batch),
            "validation_steps": int(validation_steps),
        }  # fmt: skip
        flags = [word for flag, value in settings.items() for word in (f"--{flag}", f"{value}")]
        to = ["--prior", str(brand.prior), "--output_dir", str(brand.run(number))]
        self._add(brand, f"run {number}", ["train", where, "--model", what, *to, *flags])

    def report(self, name: str) -> None:
        """Writes the brand's page."""
        brand = self._fitted(name)
        self._add(brand, "report", ["report", str(brand.path)])

    def _chosen(self, name: str, photos: str | None, model: str | None) -> tuple[Brand, str, str]:
        where, what = str(self.studio.path_of(photos)), self.studio.model_of(model)
        brand = self.studio.brand(name)
        brand.choose(photos=photos, model=model)
        return brand, where, what

    def _fitted(self, name: str) -> Brand:
        brand = self.studio.brand(name)
        if not brand.fit:
            raise OnbrandError("option", "fit the brand's photos first, in step 2")
        return brand

    def _add(self, brand: Brand, title: str, *commands: Sequence[str]) -> None:
        self.jobs.add(title, brand.name, [["onbrand", *command] for command in commands], brand.log(title))
