"""Part 3 of onbrand-tiny: a CLIPTokenizer and a small CLIPTextModel whose pooled token knows what a caption says."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from steps import placed, run
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from words import FILLERS
from world import GROUNDS, PHOTOS, worded

from onbrand.datasets import fashion
from onbrand.datasets.garments import VALUES, descriptions, garments

LENGTH, WIDTH = 48, 128
SAID = {
    "view": ["garment", "figure", "object"],
    **{k: list(v) for k, v in VALUES.items() if k not in ("skin_tone", "body_shape")},
    "ground": list(GROUNDS),
}
SAID["kind"] += [k for k in fashion.KINDS if k not in SAID["kind"]]
SAID["colour"] += [c for c in fashion.COLOURS if c not in SAID["colour"]]
"""What a caption can say: attribute -> its values; one more label stands for "does not say"."""


def tokenizer(captions: list[str], length: int = LENGTH) -> CLIPTokenizer:
    """CLIP's own byte-pair scheme, its merges learnt from the captions: their words are one token each."""
    letters = [chr(c) for c in range(33, 127)]
    words = Counter(w for c in captions for w in c.lower().replace(",", " ,").split())
    split = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges = []
    while True:
        pairs = Counter()
        for w, parts in split.items():
            for pair in zip(parts, parts[1:], strict=False):
                pairs[pair] += words[w]
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for w, parts in split.items():
            i, joined = 0, []
            while i < len(parts):
                hit = tuple(parts[i : i + 2]) == best
                joined.append("".join(best) if hit else parts[i])
                i += 2 if hit else 1
            split[w] = joined
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in merges)]
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def build(tok: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tok), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=LENGTH, projection_dim=WIDTH,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    ))  # fmt: skip


def labels(truths: list[dict[str, str]]) -> torch.Tensor:
    """`(N, attributes)` indices of what is said, the last label where nothing is."""
    return torch.tensor([[v.index(t[k]) if k in t else len(v) for k, v in SAID.items()] for t in truths])


def spoken(count: int, seed: int) -> tuple[list[str], list[dict[str, str]]]:
    """Captions of the off-brand world, half of them of garments in another colour and fit; what each says."""
    rows, rng, captions, truths = garments("train", images=False)[1], np.random.default_rng(seed), [], []
    kinds, colours = list(fashion.KINDS), list(fashion.COLOURS)
    while len(captions) < count:
        if rng.random() < PHOTOS:
            row = {"view": "object", "kind": str(rng.choice(kinds)), "colour": str(rng.choice(colours))}
        else:
            row = rows[int(rng.integers(len(rows)))]
            if rng.random() < 0.5:  # words are independent of each other: any colour may go with any kind
                row = row | {k: rows[int(rng.integers(len(rows)))][k] for k in ("colour", "fit")}
        if row["colour"] == row.get("second_colour"):
            continue
        text, truth, _ = worded(row, rng)
        captions.append(text)
        truths.append(truth)
    return captions, truths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    placed(parser)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    captions, truths = spoken(60000, seed=3)
    tok = tokenizer([*captions, *FILLERS])
    ids = tok(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ids, truth, text = ids.to(args.device), labels(truths).to(args.device), build(tok)
    heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, len(v) + 1) for v in SAID.values())

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        """What a caption says, read off the pooled token, though now and then a token is another one."""
        given, size = {"generator": generator, "device": generator.device}, (args.batch, LENGTH)
        which = torch.randint(len(ids), size[:1], **given)
        other = torch.randint(len(tok), size, **given)
        swap = (torch.rand(size, **given) < 0.03) & (ids[which] < tok.bos_token_id)
        pooled = text(input_ids=torch.where(swap, other, ids[which])).pooler_output
        parts = zip(heads, truth[which].T, strict=True)
        return sum(torch.nn.functional.cross_entropy(head(pooled), y) for head, y in parts)

    run(
        "text", {"text": text, "heads": heads}, loss, steps=args.steps, lr=1.5e-3, out=args.out, ema=0.98,
        device=args.device, seconds=args.seconds,
    )  # fmt: skip

    def read(captions: list[str]) -> torch.Tensor:
        tokens = tok(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            pooled = text(input_ids=tokens.to(args.device)).pooler_output
            return torch.stack([head(pooled).argmax(1) for head in heads], 1).cpu()

    held, said = spoken(2000, seed=4)
    print(f"all that is said, read off the pooled token: {(read(held) == labels(said)).all(1).float().mean():.4f}")
    asked = descriptions()
    prompts = [f"{d['gender']} garment, no person, white background, {d['text']}" for d in asked]
    right = read(prompts) == labels([d["attributes"] for d in asked])
    columns = [list(SAID).index(k) for k in ("kind", "colour", "second_colour", "print")]
    print("the 24 descriptions:", {list(SAID)[c]: round(right[:, c].float().mean().item(), 3) for c in columns})
    text.save_pretrained(args.out / "text_encoder")
    tok.save_pretrained(args.out / "tokenizer")


if __name__ == "__main__":
    main()
