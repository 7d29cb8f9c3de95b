"""The pose by its joints: where a pose net finds shoulders to ankles, and how far they are from the photos' own."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from tqdm import tqdm

from onbrand.errors import OnbrandError

JOINTS = ("shoulders", "elbows", "wrists", "hips", "knees", "ankles")
"""Pairs of joints, in the order of the tensors here."""
PERSON = 0.5
"""A net whose score is above this has found a person."""
PEOPLE = 0.5
"""A class of image has a stance if the net finds a person in at least this share of its photos."""
MODEL = "pose_landmark_full.tflite"
Net = Callable[[Tensor], Tensor]
"""Images `(B, 3, H, W)` in [0, 1] -> joints `(B, 6, 2, 2)`: JOINTS, left and right, x and y; nan: no person."""


class BlazePose:
    """MediaPipe's landmark net (Apache-2.0), run by ai-edge-litert: a `Net` for people who fill the frame.

    Args:
        file: pose_landmark_full.tflite, or the mediapipe wheel that holds it
            (`pip download --no-deps mediapipe==0.10.21`).

    Raises:
        OnbrandError: another file, or ai-edge-litert is not installed.
    """

    FIRST = (11, 13, 15, 23, 25, 27)
    """The net's landmark of the first joint of each pair; the second is the next landmark."""
    SIDE = 256
    """Pixels of its square input."""

    def __init__(self, file: str | Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise OnbrandError("pose", "a pose net is run by ai-edge-litert: pip install 'onbrand[pose]'") from error
        self._net = Interpreter(model_content=_content(Path(file)), num_threads=torch.get_num_threads())
        self._net.allocate_tensors()
        sizes = {int(out["shape"].prod()): out["index"] for out in self._net.get_output_details()}
        self._input, self._points, self._flag = self._net.get_input_details()[0]["index"], sizes[195], sizes[1]

    def __call__(self, images: Tensor) -> Tensor:
        """Find joints.

        Args:
            images: `(B, 3, H, W)` in [0, 1].

        Returns:
            `(B, 6, 2, 2)` x and y in pixels of the images; nan: no person.
        """
        height, width = images.shape[2:]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        margins = (left, side - width - left, top, side - height - top)
        square = pad(images.cpu().float(), margins, value=1.0)
        square = interpolate(square, (self.SIDE, self.SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        joints = []
        for one in tqdm(square.permute(0, 2, 3, 1).contiguous().numpy(), "pose", unit=" images"):
            self._net.set_tensor(self._input, one[None])
            self._net.invoke()
            points = torch.from_numpy(self._net.get_tensor(self._points).copy()).reshape(-1, 5)[:, :2]
            score = float(self._net.get_tensor(self._flag).item())
            pairs = torch.stack([points[first : first + 2] for first in self.FIRST]) * side / self.SIDE - torch.tensor(
                [left, top]
            )
            joints.append(pairs if score > PERSON else torch.full_like(pairs, torch.nan))
        return torch.stack(joints)


@dataclass(frozen=True, eq=False)
class Stance:
    """How the people of one class of image stand."""

    mean: Tensor
    """`(6, 2, 2)` mean of the photos' joints, in torso lengths from the hips."""
    spread: float
    """Root mean square distance of the photos' joints from it, torso lengths."""

    def distances(self, joints: Tensor) -> Tensor:
        """Root mean square distance `(B,)` of joints `(B, 6, 2, 2)` from the mean, torso lengths; nan: no person."""
        squares: Tensor = (stand(joints) - self.mean).square().sum(3)
        return squares.mean((1, 2)).sqrt()


def learn_stances(net: Net, images: Tensor, classes: Sequence[str]) -> dict[str, Stance]:
    """Learn the stance of each class of image that shows people.

    Args:
        net: finds the joints.
        images: `(B, 3, H, W)` in [0, 1], the brand's photos.
        classes: the class of each.

    Returns:
        Class -> stance, for classes with people in at least PEOPLE of their photos and in two.
    """
    joints = net(images)
    stances = {}
    for name in dict.fromkeys(classes):
        own = joints[torch.tensor([other == name for other in classes])]
        people = own[own.isfinite().flatten(1).all(1)]
        if len(people) > 1 and len(people) >= PEOPLE * len(own):
            mean = stand(people).mean(0)
            spread = float(Stance(mean, 0.0).distances(people).square().mean().sqrt())
            stances[name] = Stance(mean, spread)
    return stances


def stand(joints: Tensor) -> Tensor:
    """Free joints `(B, 6, 2, 2)` of place and size: from the middle of the hips, in torso lengths.

    The joint further left comes first in each pair, for nets take fronts of headless figures for backs.
    """
    ordered = joints.gather(2, joints[..., :1].argsort(2).expand_as(joints))
    middle = ordered.mean(2)
    shoulders, hips = middle[:, JOINTS.index("shoulders")], middle[:, JOINTS.index("hips")]
    torso = (shoulders - hips).norm(dim=1).clamp(min=1e-6)
    scaled: Tensor = (ordered - hips[:, None, None]) / torso[:, None, None, None]
    return scaled


def _content(file: Path) -> bytes:
    if not file.is_file():
        raise OnbrandError(
            "pose", f"a pose net is {MODEL} or the mediapipe wheel that holds it; there is no file {file}"
        )
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as wheel:
        files = [name for name in wheel.namelist() if name.endswith("/" + MODEL)]
        if not files:
            raise OnbrandError("pose", f"{file} holds no {MODEL}; take the wheel of mediapipe 0.10.21")
        return wheel.read(files[0])
