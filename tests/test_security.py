"""What SECURITY.md promises: nothing is executed, nothing is written in place, and every risky call has its reason."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import onbrand
from onbrand.core import Prior
from onbrand.errors import OnbrandError
from onbrand.models import pipeline
from worlds import raises, tiny_pipeline

SOURCE = Path(onbrand.__file__).parent
RISKY = re.compile(
    r"(^|\.)(open|fdopen|system|popen|urlopen|urlretrieve|hf_hub_download|snapshot_download|rmtree|save_file)$"
    r"|\.(symlink|symlink_to|write_text|write_bytes|savefig|save|tofile)$|^(eval|exec|compile|__import__|torch\.load)$"
    r"|^(subprocess|pickle|dill|joblib|marshal|shelve|httpx|socket|ctypes|runpy)\."
    r"|^requests\.(get|post|put|head|request|Session)$|^yaml\.(load|load_all|full_load|unsafe_load)$"
)
"""Calls that execute, fetch, remove, or write in place."""
ALLOWED = {
    "api/_export.py: export: pipeline.save": "into a draft",
    "api/_output.py: locked: file.write_text": "into the lock that this run holds",
    "api/_output.py: locked: socket.gethostname": "this machine's own name",
    "api/_patch.py: patch: draft.write_bytes": "into a draft",
    "comparison/baselines.py: paste: Image.fromarray(pixels).save": "into a draft",
    "comparison/baselines.py: prepare: (draft / LATENTS).symlink_to": "a prior's cache is the brand's",
    "comparison/baselines.py: baseline_model: pipeline.save": "into a draft",
    "comparison/baselines.py: prepare: other_prior(pipe, name, fitted, photos, brand, split).save": "into a draft",
    "comparison/baselines.py: through: to_image(pixels * 2 - 1).save": "into a draft",
    "comparison/tables.py: curves: figure.savefig": "into a draft",
    "comparison/tables.py: grid: Image.fromarray(np.concatenate([row[:, :width] for row in rows])).save": "a draft",
    "comparison/tables.py: scatter: figure.savefig": "into a draft",
    "core/prior_file.py: write: save_file": "into a draft",
    "core/prior.py: save_all: one.save": "into a draft",
    "core/prior.py: save_all: prior.save": "Prior.save is whole or absent",
    "data/images.py: _open: Image.open": "THE way to open an image: of known formats, from bytes",
    "data/addresses.py: open: self._system.open": "what a server gives, read",
    "data/caches.py: _kohya: open": "arrays, read by numpy with allow_pickle=False",
    "data/caches.py: _shape: content.zip.open": "an array's header, read",
    "data/digests.py: reload: open": "digests, read",
    "data/latents.py: _layout: open": "a shard's header, read",
    "data/latents.py: read: open": "a shard's rows, read",
    "data/latents.py: _write: draft.write_bytes": "into a draft",
    "data/metadata.py: _of_csv: metadata.open": "metadata, read",
    "data/metadata.py: _of_json: metadata.open": "metadata, read",
    "data/sums.py: _write: draft.write_bytes": "into a draft",
    "data/tables.py: open_parquet_file: file.open": "a table at an address, read",
    "data/tars.py: _members: tarfile.open": "its headers; no member is ever extracted",
    "data/tars.py: _scan: file.open": "a tar, read",
    "data/tars.py: read: open": "a member's bytes, read where they lie",
    "datasets/folder.py: _png: Image.fromarray(pixels).save": "into memory",
    "datasets/garments.py: garments: Image.open": "what ships with the package, WebP alone",
    "datasets/try_on.py: regions: Image.open": "what ships with the package, PNG alone",
    "evaluation/loading.py: _open_photos: record.open": "Record.open is open_image",
    "evaluation/loading.py: open_images: row.open": "open_image, or Record.open",
    "evaluation/loading.py: size_of_first: record.open": "Record.open is open_image",
    "evaluation/text.py: save: save_file": "into a draft",
    "exporting/comfyui.py: write_latent: save_file": "into a draft",
    "exporting/webui.py: write: save_file": "into a draft",
    "hub.py: fetch: snapshot_download": "a Hub id that the user named: safetensors and model_index.json",
    "hub.py: fetched: snapshot_download": "local_files_only=True: of what is on this machine",
    "io.py: append: os.fdopen": "through no link",
    "io.py: append: os.open": "through no link",
    "io.py: remove: shutil.rmtree": "of a path that is no link; rmtree follows none below",
    "io.py: whole_file: open": "of a draft, to flush it",
    "io.py: whole_file: os.open": "of a draft, exclusively; of its folder, to flush it",
    "io.py: whole_folder: shutil.rmtree": "of a draft",
    "io.py: write_png: image.save": "into a draft",
    "io.py: write_text: draft.write_text": "into a draft",
    "launcher.py: end_with_launcher: socket.socketpair": "within this process",
    "models/controlnet.py: _fetch: snapshot_download": "a Hub id that the user named, safetensors alone",
    "models/fitting.py: background_of_all: record.open": "Record.open is open_image",
    "models/loading.py: _config_in: snapshot_download": "local_files_only=True: of what is on this machine",
    "models/loading.py: _fetch: hf_hub_download": "a Hub id that the user named",
    "models/loading.py: _shapes: torch.load": "weights_only=True, on no device: names and shapes",
    "models/lora.py: _write: draft.write_bytes": "into a draft",
    "models/weights.py: check_file: open": "its first bytes, read",
    "api/_merge.py: merge: pipeline.save": "into a draft",
    "models/pipeline.py: save: save_file": "into a draft",
    "reporting/figures.py: _svg: figure.savefig": "into memory",
    "reporting/page.py: image: pixels.save": "into memory",
    "sampling/manifest.py: _complete_lines: path.open": "the manifest, read",
    "sampling/manifest.py: _put_in_order: draft.write_bytes": "into a draft",
    "sampling/manifest.py: _write_trace: to_image(pixels).save": "into a draft",
    "training/captions.py: _table: draft.open": "of a draft",
    "training/export.py: save_model: lora_files.save": "into a draft",
    "training/export.py: save_model: pipeline.save": "into a draft",
    "training/export.py: save_model: shutil.rmtree": "of a draft's part",
    "training/state.py: _sha256: file.open": "read, for its digest",
    "training/state.py: read_state: torch.load": "weights_only=True: tensors and plain values",
    "training/state.py: save_state: file.open": "of a draft, to flush it",
    "training/state.py: save_state: save_file": "into a draft",
    "training/state.py: save_state: torch.save": "into a draft",
    "training/state.py: trim_log: draft.write_bytes": "into a draft",
    "ui/jobs.py: _run: subprocess.Popen": "onbrand itself, by a list of words, no shell",
    "ui/jobs.py: _text: self.log.open": "a job's log, read",
    "ui/look.py: _size: record.open": "Record.open is open_image",
    "ui/serve.py: ui: socket.create_server": "is the port free?",
    "ui/views.py: photographs: record.open": "Record.open is open_image",
}
"""file: function: call -> why it may be there."""


def risky(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str, ast.Call]]:
    """(function, call, its node) of every risky call, at any depth."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call) and RISKY.search(name := ast.unparse(node.func)):
            yield inner, name, node
        yield from risky(node, inner)


def calls() -> dict[str, ast.Call]:
    return {
        f"{path.relative_to(SOURCE).as_posix()}: {function}: {name}": node
        for path in sorted(SOURCE.rglob("*.py"))
        for function, name, node in risky(ast.parse(path.read_text(encoding="utf-8")))
    }


def test_every_risky_call_is_known_and_has_its_reason() -> None:
    assert sorted(set(calls()) - set(ALLOWED)) == [], "new: is there a safe way? if not, list it with its reason"
    assert sorted(set(ALLOWED) - set(calls())) == [], "gone: take it off the list"


@pytest.mark.parametrize(
    "code",
    ["Image.open(f)", "open(f)", "f.open()", "torch.load(f)", "pickle.loads(f)", "yaml.load(f)", "eval(f)", "exec(f)",
     "subprocess.run(f)", "os.system(f)", "shutil.rmtree(f)", "urlopen(f)", "hf_hub_download(f)", "f.write_text(g)"],
)  # fmt: skip
def test_a_risky_call_is_seen(code: str) -> None:
    assert [function for function, *_ in risky(ast.parse(f"def f():\n    return {code}"))] == ["f"]


@pytest.mark.parametrize("code", ["model.eval()", "yaml.safe_load(f)", "open_image(f)", "write_text(f, g)"])
def test_a_harmless_call_is_none(code: str) -> None:
    assert not list(risky(ast.parse(code)))


def test_weights_are_read_as_tensors_alone_and_no_code_is_trusted() -> None:
    loads = [node for name, node in calls().items() if name.endswith("torch.load")]
    assert len(loads) == 2
    for load in loads:
        assert {word.arg: ast.unparse(word.value) for word in load.keywords}["weights_only"] == "True"
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "custom_pipeline")), path
            assert not (isinstance(node, ast.Constant) and node.value == "trust_remote_code"), path


class Bomb:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("raw", [True, False])
def test_pickled_weights_are_not_executed(copy: Path, tmp_path: Path, part: str, raw: bool) -> None:
    mark, names = tmp_path / "executed", {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    (copy / part / f"{names.get(part, 'model')}.safetensors").unlink()
    file = copy / part / f"{names.get(part, 'pytorch_model')}.bin"
    if raw:
        file.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"weight": Bomb(mark)}, file)
    with pytest.raises(Exception):  # noqa: B017  (how diffusers says it is its own affair)
        pipeline.load(copy)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_pickle_for_a_model_file_is_not_executed(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(pickle.dumps({"state_dict": Bomb(tmp_path / "executed")}))
    with pytest.raises(Exception):  # noqa: B017
        pipeline.load(tmp_path / f"model{suffix}")
    assert not (tmp_path / "executed").exists()


def test_a_pickle_for_a_state_is_not_executed(tmp_path: Path) -> None:
    from onbrand.training.state import State, load_state, save_state

    state = State(1, {}, {}, {}, {"w": torch.zeros(1)}, {}, {})
    path = save_state(tmp_path / "state", state, 1)
    torch.save({"state": Bomb(tmp_path / "executed")}, path / "optimizer.pt")
    with pytest.raises(Exception):  # noqa: B017
        load_state(tmp_path / "state")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("part", ["unet", "scheduler", "tokenizer"])
def test_code_in_a_models_folder_does_not_run(copy: Path, tmp_path: Path, part: str) -> None:
    code = f"import os; os.mkdir({str(tmp_path / 'executed')!r})\nclass Own:\n    pass\n"
    (copy / part / "own.py").write_text(code)
    (copy / "pipeline.py").write_text(code)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {part: ["own", "Own"]}))
    for name in ("config.json", "tokenizer_config.json", "scheduler_config.json"):
        if (file := copy / part / name).is_file():
            auto = {"auto_map": {"AutoTokenizer": "own.Own", "AutoModel": "own.Own"}}
            file.write_text(json.dumps(json.loads(file.read_text()) | auto))
    with pytest.raises(Exception):  # noqa: B017
        pipeline.load(copy)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "header",
    [1 << 62, 1 << 40, {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
     {"w": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}}],
)  # fmt: skip
def test_announced_terabytes_take_no_memory(tmp_path: Path, header: Any) -> None:
    file = tmp_path / "prior.safetensors"
    if isinstance(header, int):
        file.write_bytes(struct.pack("<Q", header) + b"{}")
    else:
        text = json.dumps(header | {"__metadata__": {"onbrand": "{}"}}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raises("prior", file):
        Prior.load(file)
    with pytest.raises(OnbrandError):
        pipeline.load(tmp_path, lora=file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
