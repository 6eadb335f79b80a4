"""`bge-pipeline demo`: a table of the old dimensions, migrated through Dagster and searched before and after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from bge_pipeline.cli.printing import megabytes, stdout
from bge_pipeline.cli.wording import worded
from bge_pipeline.console import loading_progress, stderr
from bge_pipeline.database.connection import Database, embedded_folder
from bge_pipeline.demo.corpus import segments
from bge_pipeline.demo.home import SCHEMA, left_alone, questions_file
from bge_pipeline.demo.mark import alone, claim_schema, drop_demo_table
from bge_pipeline.demo.questions import judge
from bge_pipeline.demo.table import DemoTable, create_demo_table, legacy_encoder
from bge_pipeline.embedding.endpoint.address import Address
from bge_pipeline.errors import Interrupted
from bge_pipeline.phase_line import phase_line
from bge_pipeline.phases.endpoint_use import count_unsent, endpoint_use
from bge_pipeline.phases.migrate import open_service
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.status import Status, read_status
from bge_pipeline.postgres_url import parse_url, shown
from bge_pipeline.quality.judgements import JudgedQueries, write_judged_queries
from bge_pipeline.search import Retriever, SearchResponse, create_text_index
from bge_pipeline.settings import DatabaseSettings, ModelSettings, Settings

if TYPE_CHECKING:
    from bge_pipeline.orchestration.progress import StepProgress

logger = logging.getLogger(__name__)

QUERY = "why does my default list argument keep its contents between calls"
_SHOWN_RESULTS = 3
_BENCHMARK_TEXTS = 256


@dataclass(frozen=True)
class DemoResult:
    """The table before and after, as status and as search quality.

    Attributes:
        before, after: status of the table.
        questions: judged questions that the quality figures are means over.
        ndcg_before, ndcg_after: nDCG@20 of the stand-in vectors and of the new ones.
        ndcg_hybrid, ndcg_reranked: of the new ones fused with words, and that reranked; None without a reranker.
        report: path of the benchmark report.
    """

    before: Status
    after: Status
    questions: int
    ndcg_before: float
    ndcg_after: float
    ndcg_hybrid: float
    ndcg_reranked: float | None
    texts_per_second: float
    lock_milliseconds: float
    report: str

    def as_metadata(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def run_demo(settings: Settings, *, rows: int | None, reset: bool, is_shown: bool = True) -> DemoResult:
    """Make the demo's table, search it, migrate it through Dagster, search it again and, where it is shown, print what changed.

    `settings` are those of `demo_settings`; `reset` drops what an earlier demo left.

    Raises:
        PhaseError: a name that the demo needs is taken, by an earlier demo or by somebody else's table.
        LockNotAcquired: another demo is at work there.
        Interrupted: Ctrl-C before the table was there; afterwards it is a KeyboardInterrupt, and `migrate` resumes.
    """
    # Dagster's rooms are loaded here, so that the other commands start without them.
    from bge_pipeline.orchestration.in_process import migrate_through_dagster

    _announce(settings)
    with ExitStack() as stack:
        with _to_be_begun_again():
            database = stack.enter_context(Database.from_settings(settings))
            stack.enter_context(alone(database))
            table = _make_table(database, settings, rows, reset=reset)
        _say(
            f"{table.rows:,} segments of Python documentation, with {table.legacy_dimensions}-d vectors: {table.legacy_model}"
        )
        judged = _judged(Migration(database, settings))
        migration = Migration(database, settings.model_copy(update=_for_demo(settings, judged)))
        before = read_status(migration)
        create_text_index(database, migration.settings)
        with open_service(migration) as service:
            legacy = Retriever(database, migration.settings, service, query_encoder=legacy_encoder(migration.settings))
            old_answer = legacy.search(QUERY, top_k=_SHOWN_RESULTS)

        with _watched_migration() as watch:
            through_dagster = migrate_through_dagster(migration.settings, on_progress=watch)

        after = read_status(migration)
        with open_service(migration) as service:
            retriever = Retriever(database, migration.settings, service)
            new_answer = retriever.search(QUERY, top_k=_SHOWN_RESULTS)
    figures = through_dagster.figures
    result = DemoResult(
        before=before,
        after=after,
        questions=len(judged),
        ndcg_before=float(figures["old_dense_ndcg"]),
        ndcg_after=float(figures["new_dense_ndcg"]),
        ndcg_hybrid=float(figures["new_hybrid_ndcg"]),
        ndcg_reranked=figures.get("new_hybrid_reranked_ndcg"),
        texts_per_second=float(figures["backfill_texts_per_second"]),
        lock_milliseconds=float(figures["lock_milliseconds"]),
        report=figures["report_path"],
    )
    if is_shown:
        _print(result, old_answer, new_answer)
    return result


@contextmanager
def _to_be_begun_again() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted before the demo's table was there", next_step="the same command with --reset begins again"
        ) from None


def _make_table(database: Database, settings: Settings, rows: int | None, *, reset: bool) -> DemoTable:
    if reset:
        drop_demo_table(database, settings)
    with database.transaction() as connection:
        claim_schema(connection, settings.target_schema)
    with loading_progress(rows) as show:
        return create_demo_table(database, settings, rows, on_progress=show)


def _announce(settings: Settings) -> None:
    if settings.embedding_provider == "openai":
        _say(
            f"model: {settings.embedding_model} of {Address.from_settings(settings).host}, which is sent the demo's texts"
        )
    elif settings.embedding_model == "bundled":
        _say("model: the bundled all-MiniLM-L6-v2 (384-d), since it needs no download; EMBEDDING_MODEL chooses another")
    _say(f"database: {_where(settings)}, schema {SCHEMA}")
    if spared := left_alone():
        _say(f"not read, since the demo has its own: {', '.join(spared)}")


def question_to_user(settings: Settings, *, rows: int | None, reset: bool) -> str | None:
    """What the demo would do in a database that is not its own, and send to an endpoint, for the user to agree to.

    None where it does neither.

    Raises:
        ConfigurationError: a variable that the endpoint needs is missing or wrong.
        ModelUnavailable: EMBEDDING_TOKENIZER cannot be found.
    """
    told = []
    if settings.database_url is not None:
        first = "drops the demo's earlier tables and " if reset else ""
        effort = " but the search effort of new sessions, by SERVER_SEARCH_EFFORT=set"
        told.append(
            f"This {first}makes the schema {SCHEMA} with the demo's tables in {_where(settings)}, and the extension vector "
            f"if it is missing. Nothing else there is changed{effort if settings.server_search_effort == 'set' else ''}."
        )
    if settings.embedding_provider == "openai":
        told.append(_told_sending(settings, [segment.text for segment in segments(rows)]))
    return " ".join(told) or None


def _told_sending(settings: ModelSettings, texts: list[str]) -> str:
    counted = count_unsent(settings, texts)
    assert counted is not None, "an endpoint is configured"
    use = endpoint_use(settings, float(counted.token_counts.mean()), len(texts))
    return (
        f"This sends {len(texts):,} texts of Python's documentation, {use}; gate and benchmark send some of them again."
    )


def _where(settings: DatabaseSettings) -> str:
    if settings.database_url is None:
        return f"an embedded PostgreSQL of the demo's own in {embedded_folder(settings)}"
    return shown(parse_url(settings.database_url.get_secret_value()))


def _judged(migration: Migration) -> JudgedQueries:
    target = migration.target
    with migration.database.autocommit() as connection:
        return judge(tuple(row) for row in connection.execute(target.sql("SELECT {id}, video_id, {text} FROM {table}")))


def _for_demo(settings: Settings, judged: JudgedQueries) -> dict[str, object]:
    """The judged questions as an EVAL_QUERIES file, so that the quality gate asks them too, and a shorter benchmark.

    The searches are by the vectors alone: they send no question to a chat endpoint.
    """
    path = questions_file(settings.home)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_judged_queries(path, judged)
    texts = settings.benchmark_texts if "benchmark_texts" in settings.model_fields_set else _BENCHMARK_TEXTS
    return {"eval_queries": path, "benchmark_texts": texts, "query_expansion": "off"}


@contextmanager
def _watched_migration() -> Iterator[Callable[[StepProgress], None]]:
    """A line as each asset begins, and the backfill's bar."""
    with phase_line() as line:
        seen: set[tuple[str, int]] = set()

        def watch(progress: StepProgress) -> None:
            if (progress.step, progress.partition) not in seen:
                seen.add((progress.step, progress.partition))
                part = f", id range {progress.partition} of {progress.partitions}" if progress.partitions else ""
                _say(f"dagster: {progress.step}{part}")
            if progress.backfill is not None:
                line.backfill(progress.backfill)
            if progress.index is not None:
                line.index(progress.index)

        yield watch


def _print(result: DemoResult, old: SearchResponse, new: SearchResponse) -> None:
    stdout.print(_comparison(result))
    for title, answer in (("before", old), ("after", new)):
        stdout.print(Text.assemble(("\n" + title, "bold"), f": {QUERY}"))
        for rank, found in enumerate(answer.results, start=1):
            stdout.print(Text(f"  {rank}. {found.score:.3f}  {found.text}"), overflow="ellipsis", no_wrap=True)
    stdout.print("\nWhere to look next")
    stdout.print(Text(f"  report            {result.report}"))
    for command, what in (
        ("bge-pipeline status", "where the migration stands"),
        ('bge-pipeline search "how do I stop a generator early" --mode hybrid --explain', ""),
        ("bge-pipeline dev", "the Dagster UI on this very history, http://127.0.0.1:3000"),
        ("bge-pipeline rollback", "the old vectors again; bge-pipeline retire drops them"),
    ):
        stdout.print(Text(worded(f"  {command}    {what}".rstrip())))


def _comparison(result: DemoResult) -> Table:
    before, after = result.before, result.after
    table = Table(title="before and after", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("model", "stand-in for GTE-Qwen2-1.5B", str(after.model))
    table.add_row("dimensions", str(before.dimensions), str(after.dimensions))
    table.add_row(
        "one vector", f"{4 * (before.dimensions or 0) + 8:,} bytes", f"{4 * (after.dimensions or 0) + 8:,} bytes"
    )
    if before.index and after.index:
        table.add_row("vector index", megabytes(before.index.bytes), megabytes(after.index.bytes))
    table.add_row(f"nDCG@20, {result.questions} questions", f"{result.ndcg_before:.3f}", f"{result.ndcg_after:.3f}")
    table.add_row("nDCG@20, hybrid search", "", f"{result.ndcg_hybrid:.3f}")
    if result.ndcg_reranked is not None:
        table.add_row("nDCG@20, hybrid search, reranked", "", f"{result.ndcg_reranked:.3f}")
    table.add_row("embedded and written", "", f"{result.texts_per_second:,.0f} texts/s")
    table.add_row("lock held by the swap", "", f"{result.lock_milliseconds:.0f} ms")
    table.add_row("pending", "", str(after.pending))
    return table


def _say(line: str) -> None:
    stderr.print(line, style="dim", highlight=False, markup=False)
