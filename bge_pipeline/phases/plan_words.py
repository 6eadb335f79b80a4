"""What a plan finds around the table and says in words: what is dropped, what stands in the way, what one must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from bge_pipeline.database.indexes import MEBIBYTE
from bge_pipeline.database.privileges import missing_privileges
from bge_pipeline.database.publications import find_replication, updates_fault
from bge_pipeline.database.read_only import read_only_fault
from bge_pipeline.database.update_rules import find_update_rules, rules_fault
from bge_pipeline.database.user_triggers import find_user_triggers
from bge_pipeline.database.vector_type import VectorType
from bge_pipeline.duration import about
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import BgePipelineError
from bge_pipeline.phases.application_vectors import same_dimensions
from bge_pipeline.phases.companion import can_be_kept, missing_model
from bge_pipeline.phases.old_vectors import OldVectors
from bge_pipeline.phases.plan_rates import backfill_seconds
from bge_pipeline.phases.safeguards import taken_names
from bge_pipeline.phases.state import MigrationState
from bge_pipeline.phases.surroundings import hidden_changes, told_replication, told_rules, told_triggers, warnings_of
from bge_pipeline.phases.swap_checks import may_leave_dependents
from bge_pipeline.phases.unloaded_model import UnloadedModel
from bge_pipeline.phases.writing_rates import WritingRates
from bge_pipeline.settings import Settings, SwapSettings
from bge_pipeline.space import EmbeddingSpace


@dataclass(frozen=True)
class Around:
    """Who else stands around the table, in words; `lacking` are privileges, `obstacles` whatever else would stop a migration."""

    publications: tuple[str, ...]
    triggers: tuple[str, ...]
    warnings: tuple[str, ...]
    lacking: tuple[str, ...]
    obstacles: tuple[str, ...]


def look_around(
    connection: Connection, settings: Settings, state: MigrationState, space: EmbeddingSpace, pending: int
) -> Around:
    """What stands around the table."""
    target = state.table.target
    begins = state.new is not None or begins_anew(state, space)
    column = target.column_for(space.dimensions) if begins else target.embedding_column
    vector = VectorType(settings.target_vector_type, space.dimensions)
    skips = settings.skips_triggers
    triggers = find_user_triggers(connection, state.table)
    replication = find_replication(connection, state.table)
    faults = [
        read_only_fault(connection),
        updates_fault(connection, state.table, replication),
        rules_fault(connection, state.table, skipping=skips),
    ]
    obstacles = [f"{reason}; {remedy}" for reason, remedy in filter(None, faults)]
    if begins:
        taken = taken_names(connection, state, column)
        obstacles += [f"{target} already has {name}, whose name a migration needs: rename or drop it" for name in taken]
    warnings = warnings_of(connection, state)
    return Around(
        publications=told_replication(replication, state, column, vector) if begins else (),
        triggers=(
            *told_triggers(triggers, column, pending, settings.backfill_batch_rows, skipping=skips),
            *told_rules(find_update_rules(connection, state.table), skipping=skips),
        ),
        warnings=warnings if state.phase != "legacy" else hidden_changes(triggers),
        lacking=tuple(str(p) for p in missing_privileges(connection, state.table, skips_triggers=skips)),
        obstacles=tuple(obstacles),
    )


def begins_anew(state: MigrationState, space: EmbeddingSpace) -> bool:
    """Whether every row is to be embedded: on the first migration, and on the next one after a retired one."""
    if state.phase == "legacy":
        return True
    current = state.current_space
    return state.phase == "retired" and (current is None or not current.is_same_as(space))


def told_drops(settings: SwapSettings, old_indexes: list[str]) -> tuple[str, ...]:
    """What of the old is dropped, and when."""
    dropped = []
    if settings.old_index == "drop" and old_indexes:
        names = ", ".join(old_indexes)
        dropped.append(f"{names} before the backfill: until the swap, search reads the whole table (OLD_INDEX=drop)")
    if settings.old_embedding == "drop":
        dropped.append("the old vectors in the swap: there is no way back after it (OLD_EMBEDDING=drop)")
    return tuple(dropped)


def old_index_costs(
    old_indexes: Sequence[str], pending: int, speed: float, writing: WritingRates | None
) -> dict[str, str]:
    """What keeping and what dropping the old index means, each in a sentence."""
    if not old_indexes:
        return {
            "drop": "no vector index on the old column: nothing changes",
            "keep": "no vector index on the old column",
        }
    dropped, kept = (backfill_seconds(pending, speed, writing, keeps_index=keeps) for keeps in (False, True))
    stays = f" ({writing.in_page:.0%} of the updates do not touch it)" if writing is not None else ""
    return {
        "drop": f"backfill {about(dropped)}; until the swap, search on the old column reads the whole table",
        "keep": f"search stays fast; backfill {about(kept)}{stays}",
    }


def told_buffers(shared_buffers: int, index_bytes: int) -> str | None:
    """What it means to searches of the old index that the server cannot keep the whole of it; both in bytes."""
    if index_bytes <= shared_buffers:
        return None
    return (
        f"shared_buffers has {shared_buffers / MEBIBYTE:,.0f} MB, the vector index that searches read meanwhile "
        f"{index_bytes / MEBIBYTE:,.0f}: what is written takes room from it, and searches take longer; PostgreSQL's manual "
        "advises a quarter of the server's memory (a restart)"
    )


def keeps_search_current(settings: Settings, state: MigrationState, space: EmbeddingSpace) -> bool | None:
    """Whether the searched column gets vectors meanwhile; None where this project does not fill it."""
    is_next = state.companion is not None if state.new is not None else begins_anew(state, space)
    if state.phase in ("legacy", "swapped") or not is_next or state.current_space is None:
        return None
    return can_be_kept(state.current_space, settings)


def told_notices(
    settings: SwapSettings,
    state: MigrationState,
    space: EmbeddingSpace,
    old: OldVectors,
    without_previous: int,
    *,
    keeps_current: bool | None,
) -> tuple[str, ...]:
    """What a person must know before it begins."""
    found = []
    if state.phase == "swapped":
        if old.has(space.dimensions):
            found.append(same_dimensions(space.dimensions, is_watched=True))
        if without_previous:
            found.append(f"a rollback would leave {without_previous:,} rows without a vector")
    elif state.new is not None or begins_anew(state, space):
        found.extend(filter(None, [old.told()]))
        if old.has(space.dimensions):
            found.append(same_dimensions(space.dimensions, is_watched=settings.old_embedding == "keep"))
        if keeps_current:
            found.append("new rows are embedded by both models until retire, so that search finds them: two in memory")
        elif keeps_current is False and state.current_space is not None:
            found.append(missing_model(state.current_space, is_before_swap=True))
    return tuple(found)


def find_obstacles(
    settings: Settings,
    service: EmbeddingsService | UnloadedModel,
    state: MigrationState,
    dependents: tuple[str, ...],
    around: Around,
    unfit: Sequence[BgePipelineError | None],
) -> tuple[str, ...]:
    """What would stop the migration; `dependents` are bound to the column that a swap ahead takes out of search."""
    found = [f"{refusal.message}; {refusal.next_step}" for refusal in unfit if refusal is not None]
    if service.dimensions != settings.embedding_dimensions:
        found.append(f"EMBEDDING_DIMENSIONS is {settings.embedding_dimensions}, the model makes {service.dimensions}")
    if state.phase == "swapped":
        found.append("the last migration still keeps its old column: bge-pipeline retire, or bge-pipeline rollback")
    if dependents and not may_leave_dependents(settings):
        found.append(f"the swap will refuse: {', '.join(dependents)} depend on the old column")
    found.extend(around.obstacles)
    found.extend(f"missing privilege: {privilege}" for privilege in around.lacking)
    return tuple(found)
