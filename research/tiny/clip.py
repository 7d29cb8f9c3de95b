"""A small CLIPModel of the catalogue's pictures and captions, real pictures only: a stand-in for OpenAI's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from steps import run
from text import LENGTH, spoken, tokenizer
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel
from words import FILLERS, said

from onbrand.datasets.garments import PREFIXES, caption, garments
from onbrand.models import clip

WIDTH, SIDE = 128, 128


def build(words: int, bos: int, eos: int, pad: int) -> CLIPModel:
    torch.manual_seed(0)
    common = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    return CLIPModel(CLIPConfig(
        text_config=common | {"vocab_size": words, "num_hidden_layers": 3, "max_position_embeddings": LENGTH,
                              "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad},
        vision_config=common | {"num_hidden_layers": 4, "image_size": SIDE, "patch_size": 16},
        projection_dim=WIDTH,
    ))  # fmt: skip


def alike(rows: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The pictures of a split in groups that one view, kind, colour and print have, groups of two and more."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(row[name] for name in ("view", "kind", "colour", "print")), []).append(i)
    return [torch.tensor(group) for group in groups.values() if len(group) > 1]


def retrieved(folder: Path, split: str, among: int = 100, draws: int = 50) -> dict[str, float]:
    """R@1 of captions to pictures and back among `among` random pictures of a split, no caption twice."""
    pictures, rows = garments(split)
    score = clip.load(folder)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    images, texts = score.embed(x, [row["text"] for row in rows])
    hits: dict[str, list[float]] = {"text to picture": [], "picture to text": []}
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        chosen = {rows[i]["text"]: i for i in rng.permutation(len(rows))}
        which = list(chosen.values())[:among]
        table = texts[which] @ images[which].T
        truth = torch.arange(among)
        hits["text to picture"].append((table.argmax(1) == truth).float().mean().item())
        hits["picture to text"].append((table.argmax(0) == truth).float().mean().item())
    return {name: round(float(np.mean(values)), 4) for name, values in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weights", type=Path, help="folder of a CLIPModel made here, to go on from")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tok = tokenizer([*spoken(60000, seed=3)[0], *PREFIXES.values(), *FILLERS])
    model = build(len(tok), tok.bos_token_id, tok.eos_token_id, tok.pad_token_id)
    if args.weights:
        model.load_state_dict(CLIPModel.from_pretrained(args.weights, dtype=torch.float32).state_dict())
    pictures, rows = garments("train")
    groups = alike(rows)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    prepared = clip.IMAGES(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (prepared.image_mean, prepared.image_std))

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        """CLIP's own: which caption is whose, both ways; captions worded anew each time, pictures a little moved.

        Half of the batches are of groups alike, to be told apart by length, fit, neckline and gender."""
        which = torch.randint(len(x), (args.batch,), generator=generator)
        if step % 2:
            order = torch.randperm(len(groups), generator=generator).tolist()
            which = torch.cat([groups[i] for i in order[: args.batch]])[: args.batch]
        rng = np.random.default_rng([6, step])
        chosen = [rows[i] for i in which.tolist()]
        told = [said(row, rng) if rng.random() < 0.7 else (None, row["named"].split(",")) for row in chosen]
        pairs = list(zip(chosen, told, strict=True))
        words = [caption(row["class"], text) if text else row["text"] for row, (text, _) in pairs]
        tokens = tok(words, padding="max_length", truncation=True, return_tensors="pt")
        part = x[which].float() / 255
        dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
        part = torch.roll(part, (dy, dx), (2, 3))
        part = part.flip(3) if torch.rand((), generator=generator) < 0.5 else part
        if torch.rand((), generator=generator) < 0.3:
            part = F.avg_pool2d(F.pad(part, (1, 1, 1, 1), mode="replicate"), 3, 1)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"],
                        pixel_values=(part - mean) / std)  # fmt: skip
        logits = out.logits_per_text.float()
        # a caption that fits another picture too is no mistake
        fits = torch.tensor([[all(a[name] == b[name] for name in ("class", *named)) for b in chosen]
                             for a, (_, named) in pairs])  # fmt: skip
        logits = logits.masked_fill(fits & ~torch.eye(len(words), dtype=torch.bool), -1e4)
        truth = torch.arange(len(words))
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2

    run("clip", {"clip": model}, loss, steps=args.steps, lr=args.lr, out=args.out, ema=0.995)
    model.half().save_pretrained(args.out / "clip")
    tok.save_pretrained(args.out / "clip")
    prepared.save_pretrained(args.out / "clip")
    score = {split: retrieved(args.out / "clip", split) for split in ("validation", "test")}
    (args.out / "clip" / "score.json").write_text(json.dumps(score, indent=1) + "\n")
    print(json.dumps(score, indent=1))


if __name__ == "__main__":
    main()
