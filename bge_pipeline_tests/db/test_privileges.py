"""A role that cannot finish is refused before it begins, with the statements that mend it."""

from __future__ import annotations

import uuid

import pytest

from bge_pipeline.database.catalog import describe_table
from bge_pipeline.database.connection import Database
from bge_pipeline.database.privileges import missing_privileges
from bge_pipeline.errors import MissingPrivilege
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline_tests.partitions import divide
from bge_pipeline_tests.support import ENCODER, SEGMENTS, execute, fill, fill_and_swap, schema_of, swap

pytestmark = pytest.mark.pgvector


@pytest.fixture
def role(database):
    """A role that may log in and nothing else."""
    name = f"role_{uuid.uuid4().hex[:8]}"
    execute(database, f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield name
    execute(database, f"REASSIGN OWNED BY {name} TO CURRENT_USER")
    execute(database, f"DROP OWNED BY {name} CASCADE")
    execute(database, f"DROP ROLE {name}")


@pytest.fixture
def as_role(database, role):
    """The database as that role sees it."""
    with Database(database.url.set(username=role, password="secret")) as theirs:
        yield theirs


def lacking(database, **keywords):
    with database.autocommit() as connection:
        return missing_privileges(connection, describe_table(connection, SEGMENTS), **keywords)


def grant(database, privileges):
    """What a superuser would do who reads the message."""
    for privilege in privileges:
        execute(database, privilege.remedy)


def test_the_owner_lacks_nothing(database):
    assert lacking(database) == []


def test_the_remedies_make_a_role_able_to_go_through_all_phases(database, as_role, settings):
    privileges = lacking(as_role)
    assert len(privileges) >= 3
    assert "only the owner of" in str(privileges[0])
    grant(database, privileges)
    assert lacking(as_role) == []
    fill_and_swap(Migration(as_role, settings))
    rollback(Migration(as_role, settings))
    swap(Migration(as_role, settings))
    retire(Migration(as_role, settings), reclaim=True)


def test_nobody_is_advised_to_become_an_administrator(database, as_role, role):
    assert not [privilege for privilege in lacking(as_role) if 'GRANT "postgres"' in privilege.remedy]
    owner = f"owner_of_{role}"
    execute(database, f"CREATE ROLE {owner}")
    execute(database, f"ALTER TABLE segments OWNER TO {owner}")
    assert lacking(as_role)[0].remedy == f'GRANT "{owner}" TO "{role}";'
    execute(database, f"ALTER ROLE {owner} CREATEROLE")
    assert lacking(as_role)[0].remedy == f'ALTER TABLE "public"."segments" OWNER TO "{role}";'
    execute(database, f"REASSIGN OWNED BY {owner} TO CURRENT_USER; DROP ROLE {owner}")


def test_a_role_that_only_fills_needs_no_ownership(database, migration, as_role, settings):
    expand(migration, ENCODER.space)
    grant(database, lacking(as_role, column="embedding_384", alters=False))
    assert lacking(as_role)
    assert backfill(Migration(as_role, settings), ENCODER).pending_after == 0


def test_rights_on_the_two_columns_are_enough_to_fill(database, migration, as_role, role):
    expand(migration, ENCODER.space)
    execute(database, f"GRANT SELECT, UPDATE (embedding_384) ON segments TO {role}")
    needs = [privilege.need for privilege in lacking(as_role, column="embedding_384", alters=False)]
    assert not [need for need in needs if "reads and updates" in need]


def test_a_database_that_forbids_temporary_tables_is_found(database, as_role):
    execute(database, f"REVOKE TEMPORARY ON DATABASE {database.url.database} FROM PUBLIC")
    assert any("temporary table" in privilege.need for privilege in lacking(as_role))


def test_rows_that_row_level_security_hides_are_found(database, as_role, role):
    grant(database, lacking(as_role))
    execute(database, "ALTER TABLE segments ENABLE ROW LEVEL SECURITY")
    execute(database, "ALTER TABLE segments FORCE ROW LEVEL SECURITY")
    (privilege,) = lacking(as_role)
    assert privilege.remedy == f'ALTER ROLE "{role}" BYPASSRLS;'
    grant(database, [privilege])
    assert lacking(as_role) == []


def test_a_vector_type_in_a_closed_schema_is_found(database, as_role):
    assert not [privilege for privilege in lacking(as_role) if "vector type" in privilege.need]
    execute(database, "CREATE SCHEMA extensions")
    execute(database, "ALTER EXTENSION vector SET SCHEMA extensions")
    (privilege,) = (privilege for privilege in lacking(as_role) if "vector type" in privilege.need)
    assert privilege.remedy.startswith('GRANT USAGE ON SCHEMA "extensions"')


@pytest.mark.parametrize(
    ("prepare", "act"),
    [
        (lambda *_: None, lambda migration: expand(migration, ENCODER.space)),
        (fill, swap),
        (fill, collapse),
        (fill_and_swap, rollback),
        (fill_and_swap, retire),
    ],
    ids=["expand", "swap", "collapse", "rollback", "retire"],
)
def test_a_phase_refuses_before_it_changes_anything(database, as_role, role, settings, prepare, act):
    prepare(Migration(database, settings))
    execute(database, f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}")
    before = schema_of(database)
    with pytest.raises(MissingPrivilege, match="only the owner of") as refused:
        act(Migration(as_role, settings))
    assert refused.value.state == "nothing was changed"
    assert "GRANT" in refused.value.next_step
    assert schema_of(database) == before


def test_a_table_that_may_not_even_be_read_is_a_missing_privilege_in_words(migration, as_role, settings):
    expand(migration, ENCODER.space)
    with pytest.raises(MissingPrivilege, match="may not do this: the backfill reads and updates"):
        backfill(Migration(as_role, settings), ENCODER)


def test_rights_on_a_partitioned_table_are_asked_of_each_partition(database, as_role, settings):
    divide(database)
    execute(database, "CREATE SCHEMA elsewhere")
    execute(database, "ALTER TABLE middle_odd SET SCHEMA elsewhere")
    role = as_role.url.username
    execute(database, f"GRANT SELECT, UPDATE ON segments TO {role}")
    words = " ".join(str(privilege) for privilege in lacking(as_role, alters=False))
    assert "reads and updates each partition" in words
    assert 'GRANT USAGE ON SCHEMA "elsewhere"' in words
    assert "may index it" not in words
    assert "only the owner of the partition" in " ".join(str(privilege) for privilege in lacking(as_role))
    for _ in range(2):
        grant(database, lacking(as_role))
    assert lacking(as_role) == []
    fill_and_swap(Migration(as_role, settings))
