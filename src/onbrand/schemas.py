"""What every JSON file that onbrand writes must hold. docs/reference/files.md says the same in words; a test compares.

pydantic is loaded with this file, hence not before a file is read. Keys that are not named here are let pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from onbrand.errors import quote


def _wrong(must: str) -> PydanticCustomError:
    return PydanticCustomError("onbrand", "{must}", {"must": must})


def _inside(name: str) -> str:
    """A file's name relative to the folder that names it, which stays in there on every system."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if not path.parts or path.anchor or ".." in path.parts or max(map(len, path.parts)) > 255:
            raise _wrong("the name of a file in this folder")
    return name


def _rising(pair: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = pair
    if low is not None and high is not None and low > high:
        raise _wrong("the lowest and the highest value, in this order")
    return pair


Count = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Loose = Annotated[float, Field(allow_inf_nan=True)]
"""A number that could not always be measured (NaN), or has no limit."""
Name = Annotated[str, Field(min_length=1)]
Inside = Annotated[str, AfterValidator(_inside)]
Place = Annotated[str, Field(max_length=4096)]
Pixels = Annotated[int, Field(ge=1, le=65536)]
Size = tuple[Pixels, Pixels]
Shade = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Shade, Shade, Shade]
Range = Annotated[tuple[Number | None, Number | None], AfterValidator(_rising)]
Words = dict[str, str]


class Part(BaseModel):
    """A JSON object: no value is taken for one of another type."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Recorded(Part):
    """What a result says of how it came to be."""

    command: str = ""
    versions: Words = {}
    fingerprints: dict[str, str | None] = {}


class FittedClass(Part):  # noqa: D101
    count: Count
    file: Inside
    r2: Number | None = None
    starts: list[str] = []


class Refused(Part):  # noqa: D101
    file: str
    reason: str


class FittedBucket(Part):  # noqa: D101
    resolution: Size
    used: Count
    classes: dict[Name, FittedClass]


class Fit(Recorded, FittedBucket):
    """fit.json."""

    model: Place
    flip: bool
    k: Count
    refused: list[Refused]
    buckets: list[FittedBucket] = []


class Leak(Part):
    """A class in leak.json."""

    count: Count
    sigma: Number
    brightness: Number
    nats: Loose
    auc: Number
    k_worth: Count
    mean_power: list[Number]
    spread_power: list[Number]
    prompt_say: dict[str, Any] = {}
    channel_means_lost: Rate | None = None

    @model_validator(mode="after")
    def _as_many(self) -> Leak:
        if len(self.mean_power) != len(self.spread_power):
            raise _wrong("as many numbers of mean_power as of spread_power")
        return self


class Finding(Part):  # noqa: D101
    code: str
    title: Name
    sentence: str
    remedy: str = ""
    level: str
    class_names: str = Field("", alias="class")


class DiagnosedBucket(Part):  # noqa: D101
    resolution: Size
    classes: dict[Name, Leak]
    findings: list[Finding]


class Diagnosis(Recorded):
    """leak.json."""

    scheduler: str
    num_inference_steps: Count
    start_timestep: Number
    abar: Rate
    trained_noise_offset: Number = 0
    classes: dict[Name, Leak]
    findings: list[Finding]
    buckets: list[DiagnosedBucket] = []


class Rated(Part):
    """A rate of images, with its interval."""

    rate: Rate
    low: Loose
    high: Loose
    n: Count


class Titled(Rated):
    """A property's rate."""

    title: Name
    rule: str


class Measured(Part):
    """A mean over images, with its interval."""

    title: Name
    rule: str
    value: Loose
    low: Loose
    high: Loose
    n: Count
    components: dict[str, list[Loose]] = {}


class Judged(Part):
    """An image in check.json."""

    file: Place
    failed: list[str]
    values: dict[str, Number]


class Check(Recorded):
    """check.json."""

    count: Count
    n_reference: Count
    all: Rated
    properties: dict[str, Titled]
    measures: dict[str, Measured]
    attributes: dict[str, Rated]
    held_out: dict[str, Loose]
    descriptive: dict[str, Loose]
    background: Colour
    images: list[Judged]
    refused: list[Refused] = []
    against: Place = ""


class Ranges(Part):
    """What `Reference.to_json` writes."""

    background: Colour
    bounds: dict[str, dict[str, Range]]
    poses: dict[str, list[list[Rate]]]
    lines: dict[str, Number]
    held_out: dict[str, Number]
    count: tuple[Count, Count]


class Reference(Part):
    """reference.json."""

    key: str
    reference: Ranges


class Unseen(Part):
    """unseen.json."""

    prior: str
    photos: dict[str, dict[Literal["class_lead", "class_likelihood", "class_diversity"], Number]]


class Never(Part):  # noqa: D101
    file: Inside
    failed: list[str]


class Gain(Part):  # noqa: D101
    images: Count
    drawn: Count
    rate_first: Rate
    rate: Rate
    drawn_per_pass: Number | None
    never: list[Never]


class Run(Recorded):
    """run.json, of a training or of images."""

    model: Place = ""
    photos: Place = ""
    prior: Place | None = None
    peak_memory_gb: Number = 0.0
    peak_memory_of: str = ""
    gate: Gain | None = None


class LogLine(Part):
    """A line of log.jsonl; held: validation_loss, in schema 1."""

    step: Annotated[int, Field(ge=1, le=2**53)]
    loss: Number
    loss_inside: Number | None = None
    loss_outside: Number | None = None
    lr: Number | None = None
    seconds: Number
    validation_loss: Number | None = None
    held: Number | None = None
    passed: Number | None = None


class Schedule(Part):
    """The learning rate's course."""

    last_epoch: Count
    step_count: Count = Field(0, alias="_step_count")
    base_lrs: list[Number]
    last_lr: list[Number] = Field(alias="_last_lr")


class Counters(Part):
    """Of a state: what else is numbers."""

    schedule: Schedule
    average: Count
    scaler: dict[str, Number | None]


class State(Part):
    """state.json."""

    step: Annotated[int, Field(ge=1, le=2**53)]
    settings: dict[str, Any]
    origin: Words
    counters: Counters
    files: Words = {}


class Batch(Part):  # noqa: D101
    first: Count
    size: Annotated[int, Field(ge=1, le=2**20)]
    position: Count = 0


class Draw(Part):  # noqa: D101
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    failed: list[str]


class ManifestLine(Part):
    """A line of manifest.jsonl."""

    index: Annotated[int, Field(ge=0, le=10**9)]
    file: Inside
    prompt: str
    class_name: str | None = Field(alias="class")
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    negative_prompt: str
    attributes: Words | None
    image: Place | None
    image_sha256: str | None
    conditioning: list[Place] | None = None
    conditioning_sha256: list[str] | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    draws: list[Draw] | None = None
    batch: Batch
    start: str
    k: Count
    look_ahead: Count = 0
    scheduler: dict[str, Any]
    num_inference_steps: Count = 0
    start_timestep: Number = 0
    abar: Rate
    guidance_scale: Number = 0
    threads: Annotated[int, Field(ge=1, le=4096)]
    device: str
    dtype: str
    versions: Words
    fingerprints: dict[str, str | None]

    @model_validator(mode="after")
    def _in_its_batch(self) -> ManifestLine:
        if not 0 <= self.index - self.batch.first < self.batch.size:
            raise _wrong(f"index {self.index} within its batch")
        if self.draws and self.seed not in [one.seed for one in self.draws]:
            raise _wrong(f"seed {self.seed} that of one of its draws")
        return self


class PhotoLine(Part):
    """A line of metadata.jsonl, as the report shows it."""

    file_name: Inside
    text: str | None = ""


class Requests(Part):  # noqa: D101
    count: Count
    sha256: str


class Scheduler(Part):  # noqa: D101
    class_name: Name = Field(alias="class")


class Settings(Part):
    """config.json of a folder of images."""

    settings: dict[str, Any]
    requests: Requests
    fingerprints: dict[str, str | None]
    dtype: str
    scheduler: Scheduler
    trained_start: dict[str, Any] | None
    gate: dict[str, Any] | None = None


class Plan(Part):
    """demo.json."""

    class Row(Part):  # noqa: D106
        name: str
        caption: str = ""
        sentence: str = ""

    title: str = ""
    lead: str = ""
    notes: list[str] = []
    commands: list[str] = []
    numbers: list[str] = []
    before: str = ""
    after: str = ""
    real: str = ""
    rows: list[Row] = []
    runs: Words = {}


class Compared(Part):
    """A score of a method in compare.json."""

    value: Loose
    low: Loose | None
    high: Loose | None
    n: Loose


class ComparedRow(Part):
    """Where a method's images are."""

    training: str
    start: str
    set: str
    images: Place


class Comparison(Recorded):
    """compare.json."""

    methods: dict[str, dict[str, Compared]]
    rows: dict[str, ComparedRow]
    mismatch: dict[str, Loose | None]
    failed: Words


class TrainedStart(Part):
    """A model's onbrand/config.json, and a LoRA's trained_start."""

    gain: Literal["window", "constant"]
    start: Literal["mean", "pca", "text"]
    k: Annotated[int, Field(ge=0, le=2**20)] | None = None
    start_timestep: Annotated[int, Field(ge=0, le=10**6)]
    prior: str | None = None


class Together(Part):
    """A model's onbrand/controlnet.json: whether the UNet learnt with the ControlNet."""

    unet: bool


class Lora(Part):
    """The metadata key onbrand of a LoRA; offset: trained_start, in schema 1."""

    base: Place = ""
    trained_start: dict[str, Any] | None = None
    offset: dict[str, Any] | None = None


class Classifier(Part):
    """reader.json of an attribute classifier."""

    attributes: Annotated[dict[Name, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    width: Annotated[int, Field(ge=1, le=1024)] = 32
    side: Annotated[int, Field(ge=32, le=4096)] = 32


class Shard(Part):
    """The metadata of a shard of latents."""

    keys: list[str]
    refused: Words


@dataclass(frozen=True)
class Schema:
    """A kind of file."""

    part: type[Part]
    code: str
    """Of the error for a damaged one."""
    remedy: str
    """The way on."""
    renamed: bool = True
    """Whether keys of schema 1 are renamed by `io.upgrade`; what renames them itself, or has kept them, is not."""


SCHEMAS: Mapping[str, Schema] = {
    "fit.json": Schema(Fit, "folder", "run `onbrand fit` again"),
    "leak.json": Schema(Diagnosis, "folder", "run `onbrand diagnose` again, or remove the file"),
    "check.json": Schema(Check, "folder", "run `onbrand check` again, or remove the file"),
    "reference.json": Schema(Reference, "folder", "remove the file: it is learned anew"),
    "reference": Schema(Ranges, "folder", "learn it anew"),
    "unseen.json": Schema(Unseen, "folder", "run `onbrand fit` again"),
    "run.json": Schema(Run, "folder", "remove the file: the run's command writes it again"),
    "log.jsonl": Schema(LogLine, "folder", "take this line out", False),
    "state.json": Schema(State, "resume", ""),
    "manifest.jsonl": Schema(ManifestLine, "folder", "take this line out, and its image is made again", False),
    "metadata.jsonl": Schema(PhotoLine, "folder", "mend the line", False),
    "config.json": Schema(Settings, "folder", "give another output_dir", False),
    "demo.json": Schema(Plan, "folder", "mend it, or remove the file"),
    "compare.json": Schema(Comparison, "folder", "run `onbrand compare` again: it makes nothing twice"),
    "onbrand/config.json": Schema(TrainedStart, "checkpoint", "save or copy the model anew", False),
    "controlnet.json": Schema(Together, "checkpoint", "save or copy the model anew", False),
    "lora": Schema(Lora, "checkpoint", "train or copy the LoRA anew", False),
    "reader.json": Schema(Classifier, "classifier", "copy the attribute classifier anew", False),
    "shard": Schema(Shard, "latents", "delete the file: it is encoded again", False),
}
"""A file's name, or what has no name of its own, -> what it must hold."""

MUST = {
    "model_type": "an object of keys and values", "dict_type": "an object of keys and values",
    "list_type": "a list", "tuple_type": "a list", "string_type": "text", "int_type": "a whole number",
    "int_from_float": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "finite_number": "a finite number", "string_too_short": "text that is not empty",
    "string_too_long": "text of at most {max_length} characters", "too_long": "a list of at most {max_length}",
    "too_short": "of at least {min_length}", "greater_than_equal": "at least {ge}", "less_than_equal": "at most {le}",
    "less_than": "below {lt}", "literal_error": "{expected}",
}  # fmt: skip
"""pydantic's kinds of error -> what a value must be, in words without Python's."""


def fault(content: Any, kind: Any) -> str:
    """What is wrong with a value first of all: the field, what it must be and is; "" if nothing is.

    Args:
        content: as JSON has it.
        kind: a Part, or a dataclass of options.
    """
    try:
        _adapter(kind).validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = first.get("ctx", {})
        field = ".".join(str(step)[:60] for step in first["loc"]) or "it"
        if first["type"] == "missing":
            return f"{field} is missing"
        if first["type"] == "value_error":  # of a dataclass, which says it whole
            return str(context["error"])
        must = MUST[first["type"]].format(**context) if first["type"] in MUST else first["msg"]
        return f"{field} must be {must.removeprefix('Input should be ')}, is {quote(first['input'])}"
    return ""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
