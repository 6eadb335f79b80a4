"""Who stands around the table, publications and the application's triggers and rules, and what a migration means to each."""

from __future__ import annotations

from sqlalchemy import Connection

from bge_pipeline.database.publications import Publication, Replication
from bge_pipeline.database.sql import quote, render
from bge_pipeline.database.trigger import trigger_fault
from bge_pipeline.database.update_rules import UpdateRule
from bge_pipeline.database.user_triggers import UserTrigger, find_user_triggers
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.phases.exchange import rename_statements
from bge_pipeline.phases.safeguards import watched_columns
from bge_pipeline.phases.state import MigrationState, other_text


def told_replication(
    replication: Replication, state: MigrationState, column: str, vector: VectorType
) -> tuple[str, ...]:
    """What each publication of the table means for a migration into `column`, and what its subscribers have to do."""
    told = [_told_publication(publication, state, column, vector) for publication in replication.publications]
    if told and replication.identity == "full":
        told.append("REPLICA IDENTITY FULL: every row of the backfill is logged with its old vectors too")
    if told and replication.slots:
        told.append(
            f"logical replication slots keep the log until their readers have it: {', '.join(replication.slots)}"
        )
    told += [
        f"subscription {name} fills the table from elsewhere: vectors that its publisher sends no longer fit "
        f"{state.table.embedding.name!r} after the swap, and it stops; have them left out of the publication before"
        for name in replication.subscriptions
    ]
    return tuple(told)


def told_triggers(
    triggers: tuple[UserTrigger, ...], column: str, rows: int, batch_rows: int, *, skipping: bool
) -> tuple[str, ...]:
    """What each trigger of the application will see of a backfill of `rows` rows of `column`."""
    told = []
    for trigger in triggers:
        if trigger.fires_on(column, skipping=skipping):
            batches = -(-rows // batch_rows)
            times = (
                f"once for each of {rows:,} rows" if trigger.each_row else f"once a commit, {batches:,} in all or more"
            )
            possible = ", if its condition holds" if trigger.condition else ""
            skips = "" if trigger.fires_on(column, skipping=True) else "; BACKFILL_TRIGGERS=skip leaves it out"
            told.append(f"{trigger}: the backfill fires it {times}{possible}{skips}")
        elif trigger.fires_on(column, skipping=not skipping):
            told.append(f"{trigger}: not fired by the backfill with BACKFILL_TRIGGERS={'skip' if skipping else 'fire'}")
    return tuple(told)


def told_rules(rules: tuple[UpdateRule, ...], *, skipping: bool) -> tuple[str, ...]:
    """What each rule that lets rows be written makes of it; the others are obstacles."""
    return tuple(
        f"{rule}: what it does beside an UPDATE it does once with every commit of the backfill, for the rows of it"
        for rule in rules
        if not rule.is_instead and rule.holds(skipping=skipping)
    )


def hidden_changes(triggers: tuple[UserTrigger, ...]) -> tuple[str, ...]:
    """The triggers that may edit the text unseen, since they fire after ours, and how to make them fire before it."""
    return tuple(
        f"trigger {trigger.name} fires after this project's own, by its name: if it edits the text, the row keeps the vector "
        f"of the text before; ALTER TRIGGER {quote(trigger.name)} ON {trigger.table} RENAME TO {quote(f'a_{trigger.name}')};"
        for trigger in triggers
        if trigger.hides_changes
    )


def warnings_of(connection: Connection, state: MigrationState) -> tuple[str, ...]:
    """What makes stored vectors unreliable, or the application's statements fail, as the table stands."""
    watched = watched_columns(state)
    if watched is None:
        return ()
    mismatch = other_text(state.filled, state.table.target)
    if mismatch is not None:
        return (f"{mismatch}: nothing is embedded before TARGET_TEXT and TARGET_WHERE are as they were",)
    found = []
    fault = trigger_fault(connection, state.table, watched)
    if fault is not None:
        found.append(f"{fault}; bge-pipeline migrate mends it")
    for name in filter(None, (watched.column, watched.also_empty)):
        if state.table.columns[name].not_null:
            found.append(
                f"column {name!r} is NOT NULL: PostgreSQL refuses a text that changes without its vector, "
                f"which the trigger empties; ALTER TABLE {state.table.target} ALTER COLUMN {quote(name)} DROP NOT NULL;"
            )
    return (*found, *hidden_changes(find_user_triggers(connection, state.table)))


def _told_publication(publication: Publication, state: MigrationState, column: str, vector: VectorType) -> str:
    target, embedding = state.table.target, state.table.embedding
    if publication.columns is not None:
        beside = "carries a list of columns, and not the new one"
        again = "; every row of the backfill is sent with what is in the list" if publication.updates else ""
        return f"{publication}: {beside}{again}"
    sent = "every row of the backfill is sent; " if publication.updates else ""
    if publication.by_partitions:
        sent += (
            "rows are sent as those of each partition (publish_via_partition_root is off), so that what follows is to be run for "
            "each table that takes one; "
        )
    add = f"ALTER TABLE {target} ADD COLUMN {quote(column)} {vector};"
    first = (
        f"{publication}: {sent}a subscriber whose table lacks the new column stops at the first change after expand, and "
        f"goes on when it has it. On each, before expand: {add}"
    )
    previous = target.column_for(embedding.dimensions)
    if previous == column:
        return (
            f"{first} At the swap the columns exchange names that a subscriber has already: it does not stop, and would put "
            "vectors of both models into one column. Copy the table to it anew after the swap, or publish a list of columns "
            "without vectors"
        )
    optional = (
        [f"ALTER TABLE {target} ALTER COLUMN {quote(embedding.name)} DROP NOT NULL"] if embedding.not_null else []
    )
    renames = [render(statement) for statement in rename_statements(target, column, previous)]
    exchange = "; ".join(["BEGIN", *optional, *renames, "COMMIT;"])
    drop = f"ALTER TABLE {target} DROP COLUMN {quote(previous)};"
    return f"{first} When it stops after the swap: {exchange} After retire: {drop}"
