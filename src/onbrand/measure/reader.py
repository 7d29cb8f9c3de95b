"""A small network that reads attributes (kind, colour, ...) off a picture; saved as safetensors and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F


class Reader(nn.Module):
    """Reads `attributes`, a dict of name -> labels, off pictures `(B, 3, H, W)` in [0, 1].

    Pictures are averaged down to `side` pixels first, 32 times a power of two: how coarse the things are that it reads.
    """

    def __init__(self, attributes: dict[str, list[str]], width: int = 32, side: int = 32) -> None:
        super().__init__()
        self.attributes, self.width, self.side = {k: list(v) for k, v in attributes.items()}, width, side

        def stage(a: int, b: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

        w, halvings = width, (side // 32).bit_length() - 1
        if side != 32 << halvings:
            raise ValueError(f"side must be 32 times a power of two, got {side}")
        first = [stage(3, w, 2), *(stage(w, w, 2) for _ in range(halvings - 1))] if halvings else [stage(3, w, 1)]
        self.body = nn.Sequential(
            *first, stage(w, 2 * w, 2), stage(2 * w, 2 * w, 1), stage(2 * w, 4 * w, 2), stage(4 * w, 4 * w, 1)
        )
        self.heads = nn.ModuleDict({name: nn.Linear(4 * w * 4, len(labels)) for name, labels in attributes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits `(B, labels)` for each attribute; pictures `(B, 3, H, W)` in [0, 1]."""
        small = F.interpolate(pictures, (self.side, self.side), mode="area") * 2 - 1
        features = F.adaptive_avg_pool2d(self.body(small), 2).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor, batch: int = 256) -> dict[str, list[str]]:
        """The likeliest label of each attribute for each of the pictures `(B, 3, H, W)` in [0, 1]."""
        logits = [self(part) for part in pictures.split(batch)]
        return {
            name: [labels[i] for part in logits for i in part[name].argmax(1).tolist()]
            for name, labels in self.attributes.items()
        }

    def save(self, folder: str | Path) -> None:
        """Write `reader.safetensors` (half precision) and `reader.json` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "reader.safetensors")
        built = {"attributes": self.attributes, "width": self.width, "side": self.side}
        (folder / "reader.json").write_text(json.dumps(built, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> Reader:
        """A saved reader; ValueError where there is none."""
        folder = Path(folder)
        if not (folder / "reader.json").exists():
            raise ValueError(f"a reader's folder holds reader.json and reader.safetensors; there is none in {folder}")
        reader = cls(**json.loads((folder / "reader.json").read_text()))
        reader.load_state_dict({k: v.float() if v.is_floating_point() else v
                                for k, v in load_file(folder / "reader.safetensors").items()})  # fmt: skip
        return reader.eval()
