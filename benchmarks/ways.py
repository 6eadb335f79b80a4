"""The speed of each way to run a model beside sentence-transformers: one architecture after another, random weights.

Run: python -m benchmarks.ways                     (needs the extra `openvino`; ten gigabytes of memory)
     python -m benchmarks.ways --only 'mpnet|t5' --rounds 3
"""

from __future__ import annotations

import argparse
import gc
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode import Encode, best_batch, make_texts, quiet, seconds_of, sentence_transformers
from benchmarks.harness import Measurement, Results
from benchmarks.shapes import copy_tokenizer
from bge_pipeline.embedding.loading import load_encoder, road_of
from bge_pipeline.embedding.models import find_sentence_model
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.embedding.tokenizer import Tokenizer
from bge_pipeline.settings import load_settings

_LONGEST = 512
_SLOW_MILLION_WEIGHTS = 200
"""From which on a quarter of the texts are enough."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=96, help="a quarter of it for networks of 200 million weights")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs, of which the median counts")
    parser.add_argument("--only", default="", help="regular expression that names of architectures must match")
    arguments = parser.parse_args()
    quiet()
    rows = [
        measured(name, make, arguments.texts, arguments.rounds)
        for name, make in architectures().items()
        if re.search(arguments.only, name)
    ]
    Measurement(
        "ways_to_run_a_model",
        "Architectures with random weights, all with the bundled model's tokenizer, on texts of mixed lengths (the lengths of "
        "`benchmarks.encode --kinds mixed`): what is chosen with the settings' defaults on this processor, beside "
        "sentence-transformers on PyTorch in the same precision and in fp32, each at the batch size that suits it best; medians "
        f"of {arguments.rounds} interleaved runs.",
        [
            Results(
                "Times the speed of sentence-transformers",
                [
                    "architecture",
                    "million weights",
                    "run by",
                    "precision",
                    "texts/s",
                    "same precision, best batch",
                    "fp32, best batch",
                ],
                rows,
            )
        ],
    ).publish()


def measured(name: str, make: Callable[[Path], Path], count: int, rounds: int) -> list[str]:
    """A row of the table: the model made, proved, and run in turn with its peers."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = make(Path(scratch) / "model")
        model = find_sentence_model(str(folder))
        settings = load_settings(
            embedding_model=str(folder),
            embedding_device="cpu",
            embedding_dimensions=model.dimensions,
            bge_pipeline_home=Path(scratch) / "home",
        )
        bundled = find_sentence_model("bundled")
        million = _million_weights(folder)
        texts = make_texts(
            "mixed", count // (4 if million > _SLOW_MILLION_WEIGHTS else 1), bundled, Tokenizer(bundled.files)
        )
        encoder = load_encoder(settings)
        road, precision = road_of(encoder), encoder.space.precision
        assert road is not None
        contenders: dict[str, Encode] = {"ours": EmbeddingsService(encoder, settings).encode_texts}
        for peer in dict.fromkeys((precision, "fp32")):
            in_batches = sentence_transformers(folder, precision=peer)
            contenders[peer] = partial(in_batches, batch=best_batch(in_batches, texts[:32]))
        seconds = _in_turn(contenders, texts, rounds)
        encoder.close()
        del contenders, encoder, in_batches
        gc.collect()
    ratios = [f"{seconds[peer] / seconds['ours']:.2f}" for peer in (precision, "fp32")]
    print(name, road.library, precision, *ratios, flush=True)
    return [name, f"{million:,.0f}", road.library, precision, f"{len(texts) / seconds['ours']:,.1f}", *ratios]


def _in_turn(contenders: dict[str, Encode], texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Median seconds of each; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, encode in contenders.items():
            taken = seconds_of(partial(encode, texts))
            if round_number:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _million_weights(folder: Path) -> float:
    """By the size of the files, which hold fp32."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 4e6


# --- Architectures -----------------------------------------------------------------------------------------------------


def architectures() -> dict[str, Callable[[Path], Path]]:
    """A maker for each, by the model whose shape it has."""
    import transformers as hf

    base: dict[str, Any] = {"vocab_size": 30_522, "pad_token_id": 0}
    small = base | {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1_536}
    large = base | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3_072}

    def network(architecture: Any, config: Any, pooling: str = "mean", *after: Callable[[int], Any]) -> Any:
        return lambda folder: _transformer(folder, architecture(config), pooling, after)

    def dense(width: int) -> Any:
        from sentence_transformers.sentence_transformer import modules
        from torch import nn

        return modules.Dense(width, 768, activation_function=nn.Identity())

    return {
        "BERT (bge-small-en-v1.5)": network(hf.BertModel, hf.BertConfig(**small), "cls"),
        "BERT (bge-base-en-v1.5)": network(hf.BertModel, hf.BertConfig(**large), "cls"),
        "RoBERTa (all-distilroberta-v1)": network(
            hf.RobertaModel,
            hf.RobertaConfig(**(large | {"num_hidden_layers": 6}), max_position_embeddings=_LONGEST + 2),
        ),
        "XLM-R (multilingual-e5-base)": network(
            hf.XLMRobertaModel, hf.XLMRobertaConfig(**large, max_position_embeddings=_LONGEST + 2)
        ),
        "DistilBERT (multi-qa-distilbert-cos-v1)": network(
            hf.DistilBertModel, hf.DistilBertConfig(**base, dim=768, hidden_dim=3_072, n_layers=6, n_heads=12)
        ),
        "MPNet (all-mpnet-base-v2)": network(
            hf.MPNetModel, hf.MPNetConfig(**large, max_position_embeddings=_LONGEST + 2)
        ),
        "ModernBERT (modernbert-embed-base)": network(
            hf.ModernBertModel,
            hf.ModernBertConfig(**(large | {"num_hidden_layers": 22, "intermediate_size": 1_152})),
        ),
        "Qwen3 (Qwen3-Embedding-0.6B)": network(
            hf.Qwen3Model,
            hf.Qwen3Config(
                **base,
                hidden_size=1_024,
                num_hidden_layers=28,
                num_attention_heads=16,
                num_key_value_heads=8,
                head_dim=128,
                intermediate_size=3_072,
            ),
            "lasttoken",
        ),
        "T5 (sentence-t5-base)": network(
            hf.T5EncoderModel,
            hf.T5Config(vocab_size=30_522, d_model=768, num_layers=12, num_heads=12, d_kv=64, d_ff=3_072),
        ),
        "BERT and Dense (LaBSE)": network(hf.BertModel, hf.BertConfig(**large), "cls", dense),
        "StaticEmbedding (static-retrieval-mrl-en-v1)": _static,
    }


def _transformer(folder: Path, network: Any, pooling: str, after: Sequence[Callable[[int], Any]]) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    plain = folder.with_name("plain")
    network.save_pretrained(plain)
    copy_tokenizer(plain)
    transformer = modules.Transformer(str(plain), max_seq_length=_LONGEST)
    width = transformer.get_embedding_dimension()
    others = [*(make(width) for make in after), modules.Normalize()]
    SentenceTransformer(modules=[transformer, modules.Pooling(width, pooling), *others], device="cpu").save_pretrained(
        str(folder)
    )
    return folder


def _static(folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer as Fast

    tokenizer = Fast.from_file(str(find_sentence_model("bundled").files.folder / "tokenizer.json"))
    weights = np.random.default_rng(7).standard_normal((30_522, 1_024), dtype=np.float32)
    static = modules.StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(folder))
    return folder


if __name__ == "__main__":
    main()
