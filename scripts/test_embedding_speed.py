"""How fast this machine embeds texts of your table and reranks them, beside the 40 texts/s of the old model.

Run: python scripts/test_embedding_speed.py
     python scripts/test_embedding_speed.py --demo --model bundled --texts 256 --batch-sizes 8 64 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_pipeline.database.connection import Database, embedded_folder
from bge_pipeline.database.sampling import sample_texts
from bge_pipeline.database.target import TargetTable
from bge_pipeline.demo.corpus import segments
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError, ConfigurationError
from bge_pipeline.phases.memory import peak_memory_bytes
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.state import require_table
from bge_pipeline.quality.speed import PASSAGES, QUERIES, EncodeRun, RerankRun, measure_encoding, measure_reranking
from bge_pipeline.settings import Settings, load_settings

BASELINE_TEXTS_PER_SECOND = 40.0
"""GTE-Qwen2-1.5B on the GPU of the migration this tool was made for: 30 to 50 texts/s, reported, not measured here."""


def read_texts(chosen: argparse.Namespace, settings: Settings) -> tuple[str, list[str]]:
    """Where the texts are from, and the texts: of a file, of the demo corpus, or of the configured table.

    Raises:
        ConfigurationError: there are none.
        TargetTableError: there is no such table.
    """
    if chosen.file is not None:
        lines = chosen.file.read_text(encoding="utf-8").splitlines()
        source, texts = str(chosen.file), [line for line in lines if line.strip()][: chosen.texts]
    elif chosen.demo or (settings.database_url is None and not embedded_folder(settings).exists()):
        source, texts = "the demo corpus", [segment.text for segment in segments(chosen.texts)]
    else:
        with Database.from_settings(settings) as database:
            require_table(Migration(database, settings))
            target = TargetTable.from_settings(settings)
            with database.autocommit() as connection:
                source, texts = str(target), sample_texts(connection, target, chosen.texts)
    if not texts:
        raise ConfigurationError(f"{source} holds no text", next_step="--file or --demo takes others")
    return source, texts


def measure(chosen: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Every figure, as plain values."""
    source, texts = read_texts(chosen, settings)
    service = EmbeddingsService.from_settings(settings)
    try:
        runs = [measure_encoding(service, texts, size, rounds=chosen.rounds) for size in chosen.batch_sizes]
        reranking, why_not = rerank(chosen, settings, service, texts)
        return {
            "model": service.space.model,
            "dimensions": service.dimensions,
            "device": service.device,
            "precision": service.space.precision,
            "source": source,
            "texts": len(texts),
            "distinct_texts": len(set(texts)),
            "mean_characters": statistics.mean(map(len, texts)),
            "baseline_texts_per_second": chosen.baseline,
            "runs": [as_values(run, chosen.baseline) for run in runs],
            "reranking": None
            if reranking is None
            else vars(reranking)
            | {
                "pairs_per_second": reranking.pairs_per_second,
                "milliseconds_per_query": reranking.milliseconds_per_query,
            },
            "reranking_not_measured": why_not,
            "device_memory_bytes": service.device_memory_bytes(),
            "process_memory_bytes": peak_memory_bytes(),
        }
    finally:
        service.shutdown()


def rerank(
    chosen: argparse.Namespace, settings: Settings, service: EmbeddingsService, texts: Sequence[str]
) -> tuple[RerankRun | None, str | None]:
    """Reranking, or why it was not measured."""
    if not settings.enable_reranker:
        return None, "ENABLE_RERANKER is not set; --reranker measures it all the same"
    reranker = service.reranker
    if reranker is None:
        return None, "no reranker could be loaded; the lines above say which were tried"
    return (
        measure_reranking(reranker, texts, queries=chosen.queries, passages=chosen.passages, rounds=chosen.rounds),
        None,
    )


def as_values(run: EncodeRun, baseline: float) -> dict[str, Any]:
    """One batch size."""
    return {
        "batch_size": run.batch_size,
        "texts_per_second": run.texts_per_second,
        "tokens_per_second": run.tokens_per_second,
        "speedup": run.texts_per_second / baseline,
        "device_memory_bytes": run.device_memory_bytes,
    }


def as_text(result: dict[str, Any]) -> str:
    """The result for people."""
    repeated = result["texts"] - result["distinct_texts"]
    lines = [
        f"{result['model']}, {result['dimensions']} dimensions, {result['precision']} on {result['device']}",
        f"{result['texts']:,} texts of {result['source']}, {result['mean_characters']:.0f} characters on average"
        + (f"; {repeated:,} of them repeat others and cost nothing" if repeated else ""),
        f"{'batch size':>10}  {'texts/s':>8}  {'tokens/s':>9}  of {result['baseline_texts_per_second']:g} texts/s",
    ]
    for run in result["runs"]:
        lines.append(
            f"{run['batch_size']:>10}  {run['texts_per_second']:>8,.0f}  {run['tokens_per_second']:>9,.0f}  "
            f"{run['speedup']:.1f} times"
        )
    found = result["reranking"]
    if found is None:
        lines.append(f"reranking: not measured: {result['reranking_not_measured']}")
    else:
        lines.append(
            f"reranking with {found['model']}: {found['pairs_per_second']:,.0f} pairs/s, {found['milliseconds_per_query']:,.0f}"
            f" ms a query ({found['queries']} queries, {found['documents']} passages each)"
        )
    device = result["device_memory_bytes"]
    where = f"{device / 1e9:.2f} GB on {result['device']}, " if device is not None else ""
    lines.append(f"memory, at most: {where}{result['process_memory_bytes'] / 1e9:.2f} GB in this process")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    source = found.add_mutually_exclusive_group()
    source.add_argument("--file", type=Path, help="take the texts from a file, one a line")
    source.add_argument(
        "--demo", action="store_true", help="take them from the demo corpus, as where there is no table"
    )
    found.add_argument("--texts", type=int, default=5_000, help="texts of the table (default: %(default)s)")
    found.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128, 256], help="default: %(default)s")
    found.add_argument("--rounds", type=int, default=1, help="take the median of so many (default: %(default)s)")
    found.add_argument("--queries", type=int, default=QUERIES, help="queries to rerank for (default: %(default)s)")
    found.add_argument("--passages", type=int, default=PASSAGES, help="passages for each (default: %(default)s)")
    found.add_argument("--model", help="in place of EMBEDDING_MODEL")
    found.add_argument("--reranker", help="in place of RERANKER_MODEL, and of ENABLE_RERANKER")
    found.add_argument("--device", help="in place of EMBEDDING_DEVICE")
    found.add_argument("--baseline", type=float, default=BASELINE_TEXTS_PER_SECOND, help="default: %(default)s texts/s")
    found.add_argument("--require", type=float, metavar="TEXTS_PER_SECOND", help="exit with 3 where the best is slower")
    found.add_argument("--json", action="store_true", help="print one JSON object")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    numbers = [chosen.texts, chosen.rounds, chosen.queries, chosen.passages, *chosen.batch_sizes]
    if min(numbers) < 1 or chosen.baseline <= 0:
        parser().error("expected numbers above 0")
    overrides = {
        "embedding_model": chosen.model,
        "embedding_device": chosen.device,
        "reranker_model": chosen.reranker,
        "enable_reranker": True if chosen.reranker else None,
    }
    settings = load_settings(**{name: value for name, value in overrides.items() if value is not None})
    result = measure(chosen, settings)
    print(json.dumps(result, indent=2) if chosen.json else as_text(result))
    best = max(run["texts_per_second"] for run in result["runs"])
    return 3 if chosen.require is not None and best < chosen.require else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BgePipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
