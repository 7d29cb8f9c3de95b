"""Part 2 of the pilot: a CLIPTokenizer and a small CLIPTextModel whose pooled token knows kind, colour and ground."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from steps import run
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from world import GROUNDS, every_caption

from onbrand.data.catalogue import COLOURS, KINDS

LENGTH, WIDTH = 24, 128


def tokenizer(captions: list[str]) -> CLIPTokenizer:
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
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def build(tok: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tok), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, projection_dim=WIDTH,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    captions = every_caption()
    tok = tokenizer(captions)
    ids = tok(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    kinds, colours, grounds = list(KINDS), list(COLOURS), list(GROUNDS)

    def attributes(words: str) -> tuple[int, int, int]:
        thing, _, rest = words.partition(", ")
        kind = max((k for k in kinds if k in thing), key=len)
        colour = next(c for c in colours if f"{c} {kind}" in thing)
        return kinds.index(kind), colours.index(colour), grounds.index(rest.split()[0]) if rest else len(grounds)

    labels = torch.tensor([attributes(c) for c in captions])
    text = build(tok)
    heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, n) for n in (len(kinds), len(colours), len(grounds) + 1))

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        which = torch.randint(len(ids), (64,), generator=generator)
        pooled = text(input_ids=ids[which]).pooler_output
        parts = zip(heads, labels[which].T, strict=True)
        return sum(torch.nn.functional.cross_entropy(head(pooled), y) for head, y in parts)

    run("text", {"text": text, "heads": heads}, loss, steps=args.steps, lr=2e-3, out=args.out, ema=0.98)
    with torch.no_grad():
        pooled = text(input_ids=ids).pooler_output
        right = torch.stack([head(pooled).argmax(1) == y for head, y in zip(heads, labels.T, strict=True)]).all(0)
    print(f"all three read off the pooled token: {right.float().mean():.4f} of {len(ids)} captions")
    text.save_pretrained(args.out / "text_encoder")
    tok.save_pretrained(args.out / "tokenizer")


if __name__ == "__main__":
    main()
