"""A plan as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_pipeline.cli.printing import megabytes, print_facts
from bge_pipeline.duration import about, duration

if TYPE_CHECKING:
    from bge_pipeline.phases.plan import Plan
    from bge_pipeline.phases.plan_rates import TokenLengths


def print_plan(plan: Plan) -> None:
    """What a migration would do."""
    tokens = plan.tokens
    print_facts(
        f"{plan.table}: {plan.phase}",
        {
            "vectors": f"{plan.old_dimensions or 'no fixed'} dimensions by {plan.old_model or 'a model not recorded'} -> "
            f"{plan.new_dimensions} by {plan.model}",
            "rows": f"{plan.rows:,}, of which {plan.pending:,} are to be embedded",
            "tokens": f"mean {tokens.mean:.0f}, median {tokens.median}, 95% up to {tokens.p95}, longest {tokens.longest} "
            f"(of {tokens.sampled_rows:,} sampled texts)",
            "truncated": _truncated(tokens),
            "sent": str(plan.endpoint) if plan.endpoint else None,
            "speed": f"{plan.texts_per_second:,.0f} texts/s measured here ({plan.device}, {plan.precision})"
            if plan.texts_per_second
            else "not measured",
            "run by": plan.run_by,
            "backfill": told_time(plan),
            "disk": f"{megabytes(plan.disk_bytes)} more until retired (table now {megabytes(plan.table_bytes)})",
            "index": _index(plan),
            "old index": ", ".join(plan.old_indexes) or "none",
            "OLD_INDEX=drop": plan.old_index_costs["drop"],
            "OLD_INDEX=keep": plan.old_index_costs["keep"],
            "depend on it": ", ".join(plan.dependents) or None,
            "mention it": "\n".join(plan.mentions) or None,
            "publications": "\n".join(plan.publications) or None,
            "triggers": "\n".join(plan.triggers) or None,
            "warnings": "\n".join(plan.warnings) or None,
            "NOTE": "; ".join(plan.notices) or None,
            "server": f"PostgreSQL {plan.postgres_version // 10_000}, pgvector {plan.pgvector_version}",
            "obstacles": "; ".join(plan.obstacles) or f"none: {_first_step(plan)}",
        },
    )


def told_time(plan: Plan) -> str:
    """How long the backfill takes, as far as it is known."""
    if not plan.pending:
        return "nothing to embed"
    if plan.texts_per_second:
        return f"{about(plan.backfill_seconds)}, at {plan.texts_per_second:,.0f} texts/s measured here"
    least = plan.endpoint.least_seconds if plan.endpoint else 0.0
    return (
        f"at least {duration(least)}, by the limits a minute" if least else "not known: nothing was sent to measure it"
    )


def _truncated(tokens: TokenLengths) -> str:
    if not tokens.share_truncated:
        return f"none: no text is longer than the model's {tokens.limit:,} tokens"
    return f"{tokens.share_truncated:.1%} of texts are longer than the model's {tokens.limit:,} tokens"


def _index(plan: Plan) -> str:
    index = plan.index
    lists = f"{index.lists:,} list{'' if index.lists == 1 else 's'}" if index.lists else f"m {index.m}"
    wanted, given = index.memory_bytes, plan.maintenance_work_mem_bytes
    raised = ", raised for the build" if wanted > given else ""
    memory = f"{megabytes(wanted)} of maintenance_work_mem ({megabytes(given)} on this server{raised})"
    return f"{index.method}, {lists}, on {index.element}; its build takes {memory}"


def _first_step(plan: Plan) -> str:
    if plan.phase == "retired" and not plan.pending:
        return "every row has a vector of this model; for another model, set EMBEDDING_MODEL"
    return {
        None: "bge-pipeline migrate",
        "first": "bge-pipeline migrate",
        "next": "bge-pipeline migrate, which begins the next migration and therefore asks (without a terminal, --yes)",
        "forward": "bge-pipeline migrate, which was rolled back and therefore asks (without a terminal, --yes)",
    }[plan.step]
