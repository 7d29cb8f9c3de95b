"""The pose by its joints: a pose net's shoulders to ankles, and how far they lie from the photos' own."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from tqdm import tqdm

JOINTS = ("shoulders", "elbows", "wrists", "hips", "knees", "ankles")
"""Pairs of joints, in the order in which nets and tensors here have them."""
PERSON = 0.5
"""A net that is surer than this has found a person."""
ONE_KIND = 0.5
"""Kinds of picture in which the net finds a person in fewer of the photos than this have no joints."""
MODEL = "pose_landmark_full.tflite"
Net = Callable[[Tensor], Tensor]
"""Pictures `(B, 3, H, W)` in [0, 1] -> joints `(B, 6, 2, 2)`: JOINTS, left and right, x and y; nan: no person."""


class BlazePose:
    """MediaPipe's landmark net (Apache-2.0), run by ai-edge-litert; a `Net`, for people who fill the frame.

    file: pose_landmark_full.tflite, or the mediapipe wheel that holds it (`pip download --no-deps mediapipe==0.10.21`).
    ValueError where it is neither, or where ai-edge-litert is not installed.
    """

    FIRST = (11, 13, 15, 23, 25, 27)
    """Its landmark of the first joint of each pair; the other one is next to it."""
    SIDE = 256

    def __init__(self, file: str | Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ValueError("a pose net is run by ai-edge-litert: pip install 'onbrand[pose]'") from error
        self._net = Interpreter(model_content=_content(Path(file)), num_threads=torch.get_num_threads())
        self._net.allocate_tensors()
        sizes = {int(out["shape"].prod()): out["index"] for out in self._net.get_output_details()}
        self._input, self._points, self._flag = self._net.get_input_details()[0]["index"], sizes[195], sizes[1]

    def __call__(self, pictures: Tensor) -> Tensor:
        """Joints, in pixels of the pictures."""
        height, width = pictures.shape[2:]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        around = (left, side - width - left, top, side - height - top)
        square = pad(pictures.cpu().float(), around, value=1.0)
        square = interpolate(square, (self.SIDE, self.SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        found = []
        for one in tqdm(square.permute(0, 2, 3, 1).contiguous().numpy(), "pose", unit=" pictures"):
            self._net.set_tensor(self._input, one[None])
            self._net.invoke()
            points = torch.from_numpy(self._net.get_tensor(self._points).copy()).reshape(-1, 5)[:, :2]
            sure = float(self._net.get_tensor(self._flag).item()) > PERSON
            pairs = torch.stack([points[first : first + 2] for first in self.FIRST]) * side / self.SIDE - torch.tensor(
                [left, top]
            )
            found.append(pairs if sure else torch.full_like(pairs, torch.nan))
        return torch.stack(found)


@dataclass(frozen=True, eq=False)
class Stance:
    """How the people of one kind of picture stand."""

    mean: Tensor
    """`(6, 2, 2)` mean of the photos' joints, in torso lengths from the hips."""
    spread: float
    """Root mean square distance of the photos' joints from it, torso lengths."""

    def distances(self, joints: Tensor) -> Tensor:
        """Root mean square distance of each picture's `(B, 6, 2, 2)` joints from the mean, in torso lengths `(B,)`;
        nan where there is no person."""
        return (stand(joints) - self.mean).square().sum(3).mean((1, 2)).sqrt()


def learn_stances(net: Net, pictures: Tensor, classes: Sequence[str]) -> dict[str, Stance]:
    """The stance of each kind of picture that shows people, of the brand's pictures `(B, 3, H, W)` in [0, 1]."""
    joints = net(pictures)
    found = {}
    for name in dict.fromkeys(classes):
        own = joints[torch.tensor([other == name for other in classes])]
        people = own[own.isfinite().flatten(1).all(1)]
        if len(people) > 1 and len(people) >= ONE_KIND * len(own):
            mean = stand(people).mean(0)
            spread = float(Stance(mean, 0.0).distances(people).square().mean().sqrt())
            found[name] = Stance(mean, spread)
    return found


def stand(joints: Tensor) -> Tensor:
    """Joints `(B, 6, 2, 2)` without place and size: from the middle of the hips, in torso lengths, the one further
    left first in each pair (nets take fronts of headless figures for backs)."""
    ordered = joints.gather(2, joints[..., :1].argsort(2).expand_as(joints))
    middle = ordered.mean(2)
    shoulders, hips = middle[:, JOINTS.index("shoulders")], middle[:, JOINTS.index("hips")]
    torso = (shoulders - hips).norm(dim=1).clamp(min=1e-6)
    return (ordered - hips[:, None, None]) / torso[:, None, None, None]


def _content(file: Path) -> bytes:
    if not file.is_file():
        raise ValueError(f"a pose net is {MODEL} or the mediapipe wheel that holds it; there is no file {file}")
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as wheel:
        inside = [name for name in wheel.namelist() if name.endswith("/" + MODEL)]
        if not inside:
            raise ValueError(f"{file} holds no {MODEL}; take the wheel of mediapipe 0.10.21")
        return wheel.read(inside[0])
