"""The asset that compares candidates for the next model; beside the migration, and no part of it."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from bge_pipeline.errors import ConsentRequired
from bge_pipeline.orchestration.failures import TRANSIENT_RETRIES, explained
from bge_pipeline.orchestration.metadata import as_dagster_metadata
from bge_pipeline.orchestration.names import OWNERS
from bge_pipeline.orchestration.per_table import per_table
from bge_pipeline.orchestration.served import ServedTable
from bge_pipeline.phases.compare_models import ENDPOINT, TEXTS, compare_models
from bge_pipeline.phases.migration import Migration
from bge_pipeline.quality.judgements import load_judged_queries
from bge_pipeline.report.comparison import ModelComparison, as_html, as_markdown


class Candidates(dg.Config):
    """Which models are compared, and on how much."""

    models: list[str] = Field(description="Candidates, each as EMBEDDING_MODEL takes it.", min_length=1)
    send_texts: bool = Field(
        False,
        description="Texts of the table may be sent to an endpoint: of a candidate endpoint:NAME@DIMENSIONS, and of the vectors "
        "of today where one made them, which are left out otherwise.",
    )
    texts: int = Field(TEXTS, ge=2, description="Rows of the table to sample.")


@per_table(
    lambda table: dg.asset(
        key=table.key("model_comparison"),
        group_name=table.called("model_choice"),
        owners=OWNERS,
        kinds={"markdown"},
        code_version="1",
        retry_policy=TRANSIENT_RETRIES,
        pool=table.pool,
        description=(
            "Candidates for the next model, measured on a sample of the table's own texts: quality on EVAL_QUERIES or on known "
            "items, texts per second here, size, agreement with the vectors of today. Name them in the launchpad. Nothing is "
            "changed, and nothing leaves the machine unless `send_texts` says that it may."
        ),
    )
)
def model_comparison(
    context: dg.AssetExecutionContext,
    config: Candidates,
    table: ServedTable,
    migration: dg.ResourceParam[Migration],
) -> dg.MaterializeResult[None]:
    """Compare."""
    with explained(table):
        if not config.send_texts and any(name.startswith(ENDPOINT) for name in config.models):
            raise ConsentRequired(
                "a candidate is served by an endpoint, to which texts of the table would be sent",
                state="nothing was sent",
                next_step="send_texts: true in the launchpad",
            )
        judged = (
            load_judged_queries(migration.settings.eval_queries)
            if migration.settings.eval_queries is not None
            else None
        )
        found = compare_models(
            migration,
            config.models,
            judged=judged,
            texts=config.texts,
            may_send=config.send_texts,
            on_step=context.log.info,
        )
    page = migration.settings.home / "reports" / f"{table.called('model-comparison')}.html"
    facts = {"best": found.candidates[0].model, "metric": found.metric, "texts": found.texts, "queries": found.queries}
    failed = {"not_measured": found.failed} if found.failed else {}
    return dg.MaterializeResult(
        metadata={
            "leaderboard": dg.MetadataValue.md(as_markdown(found)),
            **_page(context, found, page),
            **as_dagster_metadata(facts | failed),
        }
    )


def _page(
    context: dg.AssetExecutionContext, found: ModelComparison, page: Path
) -> dict[str, dg.MetadataValue[str | None]]:
    """Where the page is; nothing where none can be written on this machine, so that what was measured is not lost."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(as_html(found), encoding="utf-8")
    except OSError as error:
        context.log.warning("the leaderboard is shown here alone, its page could not be written: %s", error)
        return {}
    return {"page": dg.MetadataValue.path(str(page))}
