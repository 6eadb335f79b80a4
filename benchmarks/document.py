"""Write docs/benchmarks.md from the JSON in benchmarks/results/.

Run: python -m benchmarks.document
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, number, result_row

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `python -m benchmarks.document` from the files in `benchmarks/results/`; each section names the command that
measured it and the machine, two virtual cores without an accelerator. Read the ratios within a run rather than the
absolute figures. Not measured, for want of the hardware or the weights: any GPU, and the own weights of GTE-Qwen2-1.5B and
BGE-small (their shapes with random weights are, which is right for speed and says nothing of quality).
"""
ORDER = (
    "model",
    "encode",
    "ways",
    "lengths",
    "precision",
    "overlap",
    "write",
    "backfill",
    "log_volume",
    "index",
    "dagster",
    "search",
)


_ENCODE_COLUMNS = (
    "",
    "texts/s",
    "tokens/s",
    "times the fastest peer",
    "times the defaults",
    "of the GEMM peak",
    "least cosine to fp32",
)


def main() -> None:
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"written to {DOCUMENT}")


def document() -> str:
    """The page as it has to be."""
    parts = [HEAD]
    for path in sorted(RESULTS.iterdir(), key=_place):
        parts.extend(_encode(json.loads(path.read_text())) if path.name.startswith("encode") else _section(path))
    return "\n".join(parts).rstrip() + "\n"


def figures() -> dict[str, str]:
    """What limits.md names in braces: figures of the runs, each from its JSON."""
    (encoded,) = (json.loads(path.read_text()) for path in RESULTS.glob("encode*.json"))
    ours = {
        (kind, row["name"].rpartition(" ")[2]): row
        for kind, result in encoded["kinds"].items()
        for row in result["contenders"]
        if row["name"].startswith("ours, OpenVINO")
    }
    found = {
        f"{precision}_peak_{kind}": f"{row['share_of_gemm_peak']:.0%}" for (kind, precision), row in ours.items()
    } | {f"{precision}_times_{kind}": f"{row['times_the_defaults']:.1f}" for (kind, precision), row in ours.items()}
    lengths = _rows_of("lengths")["int8"]
    one_length = [lengths[column] for column in lengths if column.isdigit()]
    found |= {
        "int8_peak_best_length": max(one_length, key=lambda share: int(share.rstrip("%"))),
        "int8_peak_512": lengths["512"],
        "int8_peak_expected": lengths["mixed, at the rates of the lengths"],
    }
    precision = _rows_of("precision")
    return found | {
        "ten_rate": _ten_rate("backfill_10M"),
        "tuned_ten_rate": _ten_rate("backfill_10M_rate"),
        "int8_ndcg": precision["int8"]["of fp32's"],
        "bf16_ndcg": precision["bf16"]["of fp32's"],
        "int8_interval": precision["int8"]["95% interval of the change"],
    }


def _ten_rate(name: str) -> str:
    """That of ten million rows as a share of a million's."""
    million, ten_millions = (number(result_row(name, rows)["rows/s"]) for rows in ("1,000,000", "10,000,000"))
    return f"{ten_millions / million:.0%}"


def _rows_of(name: str) -> dict[str, dict[str, str]]:
    """The rows of a result's only table, by their first cell."""
    (table,) = json.loads((RESULTS / f"{name}.json").read_text())["tables"]
    return {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}


def _place(path: Path) -> tuple[int, str]:
    return next((n for n, prefix in enumerate(ORDER) if path.name.startswith(prefix)), len(ORDER)), path.name


def _section(path: Path) -> Iterator[str]:
    if path.suffix == ".md":
        yield path.read_text(encoding="utf-8").format(**figures())
        return
    found = json.loads(path.read_text())
    yield f"## {found['name'].replace('_', ' ').capitalize()}\n"
    yield f"{found['about']}\n"
    yield f"`{found['command']}`, {found['hardware']}, {found['measured_at']}\n"
    for table in found["tables"]:
        yield f"**{table['title']}**\n"
        yield _table(table["columns"], table["rows"])
    yield from (f"- {note}" for note in found["notes"])
    yield ""


def _encode(found: dict[str, Any]) -> Iterator[str]:
    peaks = ", ".join(f"{name} {peak:,.0f}" for name, peak in found["gemm_peak_gflops"].items())
    yield f"## Encoding, {' and '.join(found['kinds'])} texts\n"
    yield (
        f"{found['model']}; medians of {found['rounds']} interleaved runs, the same {found['cores']} cores for everybody. "
        f"The GEMM peaks of the same run, in GFLOP/s: {peaks}. The first ratio is to the fastest peer of the same precision, "
        "each at the batch size that suits it best; the second, to sentence-transformers' defaults, depends on the corpus: "
        "the less the texts differ in length, the less of a batch is padding that the defaults compute.\n"
    )
    yield f"`{found['command'].strip()}`, {found['processor']}, {found['cores']} cores\n"
    for kind, result in found["kinds"].items():
        yield f"**{kind} texts: {result['texts']} of {result['tokens_mean']:.0f} tokens on average**\n"
        yield _table(_ENCODE_COLUMNS, [_contender(row, result["contenders"]) for row in result["contenders"]])
    yield from (f"- not measured: {name}: {reason}" for name, reason in found["absent"].items())
    yield ""


def _contender(row: dict[str, Any], all_rows: Sequence[dict[str, Any]]) -> list[str]:
    peers = [
        other["texts_per_second"]
        for other in all_rows
        if other["precision"] == row["precision"] and not other["name"].startswith("ours")
    ]
    is_ours = row["name"].startswith("ours")
    return [
        row["name"],
        f"{row['texts_per_second']:,.1f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['texts_per_second'] / max(peers):.2f}" if is_ours and peers else "",
        f"{row['times_the_defaults']:.1f}" if row["times_the_defaults"] else "",
        f"{row['share_of_gemm_peak']:.0%}",
        f"{row['agreement_with_fp32']['min_cosine']:.4f}",
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
