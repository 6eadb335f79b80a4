"""Triggers of the application, names that are taken, a server that takes no changes: named before they matter."""

from __future__ import annotations

import logging
import uuid

import pytest

from bge_pipeline.database.connection import Database
from bge_pipeline.demo.table import create_demo_table
from bge_pipeline.embedding.hashing import HashingEncoder
from bge_pipeline.embedding.service import EmbeddingsService
from bge_pipeline.errors import MissingPrivilege, PhaseError, ReadOnlyDatabase, SwapRefused
from bge_pipeline.phases.backfill import backfill
from bge_pipeline.phases.collapse import collapse
from bge_pipeline.phases.expand import expand
from bge_pipeline.phases.migration import Migration
from bge_pipeline.phases.plan import plan
from bge_pipeline.phases.retire import retire
from bge_pipeline.phases.rollback import rollback
from bge_pipeline.phases.status import read_status
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.support import (
    ENCODER,
    execute,
    fill,
    fill_and_swap,
    put_in_quarantine,
    scalar,
    schema_of,
    swap,
    wrong_vectors,
)

pytestmark = pytest.mark.pgvector

TRIGGERS = """
CREATE TABLE audit (id bigint);
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN NEW.metadata = jsonb_build_object('updated', 'now'); RETURN NEW; END $$;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (0); RETURN NULL; END $$;
CREATE TRIGGER a_stamp BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER audit_rows AFTER INSERT OR UPDATE ON segments FOR EACH ROW WHEN (NEW.id > 100) EXECUTE FUNCTION note();
CREATE TRIGGER audit_statements AFTER UPDATE ON segments FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TRIGGER of_text BEFORE UPDATE OF text ON segments FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER on_insert BEFORE INSERT ON segments FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TRIGGER switched_off BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION stamp();
ALTER TABLE segments DISABLE TRIGGER switched_off
"""


def planned(database, settings, encoder=ENCODER):
    return plan(Migration(database, settings), EmbeddingsService(encoder, settings))


@pytest.fixture
def triggers(database):
    """Triggers of the application, of every kind."""
    execute(database, TRIGGERS)
    return database


def stamped(database):
    return scalar(database, "SELECT count(*) FROM segments WHERE metadata ? 'updated'")


def audited(database):
    return scalar(database, "SELECT count(*) FROM audit")


class TestTriggers:
    def test_plan_says_what_each_will_see_and_changes_nothing(self, triggers, make_settings):
        before = schema_of(triggers)
        told = planned(triggers, make_settings(backfill_batch_rows=100)).triggers
        assert [line.partition(" (")[0] for line in told] == [
            "trigger a_stamp",
            "trigger audit_rows",
            "trigger audit_statements",
        ]
        assert "BEFORE UPDATE FOR EACH ROW, stamp()" in told[0]
        assert "fires it once for each of 300 rows; BACKFILL_TRIGGERS=skip leaves it out" in told[0]
        assert "WHEN ((new.id > 100))" in told[1]
        assert "if its condition holds" in told[1]
        assert "once a commit, 3 in all or more" in told[2]
        assert schema_of(triggers) == before

    def test_by_default_they_fire(self, triggers, settings):
        fill(Migration(triggers, settings))
        assert stamped(triggers) == 300
        assert audited(triggers) > 200, "once for each row above 100, and once for each commit"

    def test_skip_leaves_them_out_and_ours_in(self, triggers, make_settings):
        settings = make_settings(backfill_triggers="skip")
        fill_and_swap(Migration(triggers, settings))
        assert (stamped(triggers), audited(triggers)) == (0, 0)
        assert wrong_vectors(triggers, ENCODER, "embedding") == []
        execute(triggers, "UPDATE segments SET text = 'another text' WHERE id = 1")
        assert (stamped(triggers), audited(triggers)) == (1, 1), "the application's own statements fire them"
        assert scalar(triggers, "SELECT embedding FROM segments WHERE id = 1") is None
        backfill(Migration(triggers, settings), ENCODER)
        assert audited(triggers) == 1

    def test_a_trigger_that_is_always_enabled_fires_all_the_same_and_plan_says_so(self, triggers, make_settings):
        execute(triggers, "ALTER TABLE segments ENABLE ALWAYS TRIGGER a_stamp")
        execute(triggers, "ALTER TABLE segments ENABLE REPLICA TRIGGER audit_statements")
        settings = make_settings(backfill_triggers="skip")
        told = planned(triggers, settings).triggers
        assert told[0].endswith("fires it once for each of 300 rows")
        assert told[1].endswith("not fired by the backfill with BACKFILL_TRIGGERS=skip")
        assert "once a commit, 1 in all or more" in told[2]
        fill(Migration(triggers, settings))
        assert stamped(triggers) == 300
        assert 0 < audited(triggers) < 20, "once for each commit"

    def test_other_sessions_and_later_statements_of_ours_keep_their_triggers(self, triggers, make_settings):
        fill(Migration(triggers, make_settings(backfill_triggers="skip")))
        assert scalar(triggers, "SHOW session_replication_role") == "origin"
        execute(triggers, "UPDATE segments SET speaker_label = 'x' WHERE id = 1")
        assert stamped(triggers) == 1

    @pytest.mark.parametrize(
        ("prepare", "act"),
        [
            (lambda *_: None, lambda migration: expand(migration, ENCODER.space)),
            (lambda migration: expand(migration, ENCODER.space), lambda migration: backfill(migration, ENCODER)),
            (lambda migration: expand(migration, ENCODER.space), swap),
        ],
        ids=["expand", "backfill", "swap"],
    )
    def test_a_role_that_may_not_skip_them_is_refused_before_anything_is_changed(
        self, triggers, make_settings, prepare, act
    ):
        name = f"role_{uuid.uuid4().hex[:8]}"
        settings = make_settings(backfill_triggers="skip")
        execute(triggers, f"CREATE ROLE {name} LOGIN")
        execute(triggers, f"GRANT CREATE ON SCHEMA public TO {name}; ALTER TABLE segments OWNER TO {name}")
        with Database(triggers.url.set(username=name)) as theirs:
            prepare(Migration(theirs, make_settings()))
            before = schema_of(triggers)
            with pytest.raises(MissingPrivilege, match="session_replication_role") as refused:
                act(Migration(theirs, settings))
            assert refused.value.state == "nothing was changed"
            assert schema_of(triggers) == before
            assert stamped(triggers) == 0
            (lacking,) = planned(theirs, settings).missing_privileges
            remedy = f'GRANT SET ON PARAMETER session_replication_role TO "{name}";'
            assert remedy in lacking
            assert remedy in refused.value.next_step
            execute(triggers, remedy)
            fill_and_swap(Migration(theirs, settings))
        assert stamped(triggers) == 0
        execute(triggers, f"REASSIGN OWNED BY {name} TO CURRENT_USER; DROP OWNED BY {name}; DROP ROLE {name}")

    @pytest.mark.parametrize("name", ["~zz", "é_last"])
    def test_one_that_fires_after_ours_is_named_with_the_way_out(self, database, migration, settings, caplog, name):
        execute(
            database,
            "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN NEW.text = upper(NEW.text); RETURN NEW; END $$",
        )
        execute(database, f'CREATE TRIGGER "{name}" BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION shout()')
        (warning,) = planned(database, settings).warnings
        assert f"trigger {name} fires after this project's own" in warning
        with caplog.at_level(logging.WARNING, logger="bge_pipeline"):
            fill_and_swap(migration)
        assert warning in caplog.text
        assert read_status(migration).warnings == (warning,)
        execute(database, warning.rpartition("; ")[2])
        assert read_status(migration).warnings == ()
        execute(database, "UPDATE segments SET text = 'quiet' WHERE id = 1")
        assert scalar(database, "SELECT text FROM segments WHERE id = 1") == "QUIET"
        backfill(migration, ENCODER)
        assert wrong_vectors(database, ENCODER, "embedding") == []

    def test_triggers_of_ours_for_another_column_are_not_the_applications(self, database, make_settings):
        execute(database, "ALTER TABLE segments ADD COLUMN title_embedding vector(8)")
        fill(Migration(database, make_settings()))
        result = planned(database, make_settings(target_embedding_column="title_embedding"))
        assert (result.triggers, result.warnings) == ((), ())

    @pytest.mark.parametrize(
        ("statement", "warning"),
        [
            ('ALTER TABLE segments DISABLE TRIGGER "~segments_embedding_stale"', "is disabled"),
            ('DROP TRIGGER "~segments_embedding_stale" ON segments', "is missing"),
            ("ALTER FUNCTION zz_segments_embedding_stale SECURITY DEFINER", "not as this version makes it"),
        ],
    )
    def test_ours_out_of_order_is_named_and_mended_by_expand(self, database, migration, statement, warning):
        fill_and_swap(migration)
        assert read_status(migration).warnings == ()
        execute(database, statement)
        (found,) = read_status(migration).warnings
        assert warning in found
        expand(migration, ENCODER.space)
        assert read_status(migration).warnings == ()

    def test_it_follows_another_text_column_when_expand_is_told_of_one(self, database, make_settings):
        expand(Migration(database, make_settings()), ENCODER.space)
        execute(database, "ALTER TABLE segments ADD COLUMN body text; UPDATE segments SET body = text")
        fill(Migration(database, make_settings(target_text_column="body")))
        execute(database, "UPDATE segments SET body = 'another body' WHERE id = 1")
        assert scalar(database, "SELECT embedding_384 FROM segments WHERE id = 1") is None

    def test_a_filled_column_that_may_not_be_null_is_named(self, database, migration):
        fill_and_swap(migration)
        execute(database, "ALTER TABLE segments ALTER COLUMN embedding SET NOT NULL")
        (found,) = read_status(migration).warnings
        execute(database, found.rpartition("; ")[2])
        execute(database, "UPDATE segments SET text = 'another text' WHERE id = 1")


class TestWhatDependsOnTheOldColumn:
    @pytest.mark.parametrize(
        ("overrides", "stops"),
        [
            ({}, True),
            ({"dependents": "ignore"}, False),
            ({"dependents": "ignore", "old_embedding": "drop"}, True),
        ],
    )
    def test_is_an_obstacle_where_the_swap_would_refuse(self, database, make_settings, overrides, stops):
        execute(database, "CREATE VIEW nearest AS SELECT embedding FROM segments")
        found = planned(database, make_settings(**overrides)).obstacles
        assert [obstacle for obstacle in found if "view nearest" in obstacle] == list(found)
        assert bool(found) is stops

    def test_is_none_where_no_swap_is_ahead(self, database, migration, settings):
        fill_and_swap(migration)
        retire(migration)
        execute(database, "CREATE VIEW nearest AS SELECT embedding FROM segments")
        assert planned(database, settings).obstacles == ()
        assert planned(database, settings, HashingEncoder(seed=1)).obstacles != ()

    def test_a_rule_of_the_table_is_one_too(self, database, migration, settings):
        execute(database, "CREATE TABLE kept (vector vector)")
        execute(database, "CREATE RULE keep AS ON INSERT TO segments DO ALSO INSERT INTO kept VALUES (NEW.embedding)")
        (obstacle,) = planned(database, settings).obstacles
        assert "rule keep depend on the old column" in obstacle
        fill(migration)
        with pytest.raises(SwapRefused, match="rule keep"):
            swap(migration)


class TestNames:
    @pytest.mark.parametrize("name", ["embedding_384", "embedding_1536", "embedding_exchange"])
    def test_plan_sees_a_column_of_the_users_own(self, database, settings, name):
        execute(database, f"ALTER TABLE segments ADD COLUMN {name} text")
        (obstacle,) = planned(database, settings).obstacles
        assert f"a column '{name}'" in obstacle

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE segments_embedding_quarantine (dog text)",
            "CREATE TABLE segments_embedding_journal (dear text)",
            "CREATE VIEW segments_embedding_journal AS SELECT 1 AS number, 2 AS at, 3 AS act, 4 AS facts",
        ],
    )
    def test_a_table_of_the_users_own_is_not_taken_for_ours(self, database, migration, settings, statement):
        execute(database, statement)
        before = schema_of(database)
        (obstacle,) = planned(database, settings).obstacles
        assert "whose name a migration needs" in obstacle
        with pytest.raises(PhaseError, match="which this tool did not make"):
            expand(migration, ENCODER.space)
        assert schema_of(database) == before

    def test_a_table_whose_name_and_columns_join_to_another_migrations_is_refused(
        self, database, settings, make_settings
    ):
        execute(database, "CREATE TABLE segments_title (id bigint PRIMARY KEY, text text, embedding vector(8))")
        execute(database, "ALTER TABLE segments ADD COLUMN title_embedding vector(8)")
        first = Migration(database, make_settings(target_table="segments_title"))
        expand(first, ENCODER.space)
        second = make_settings(target_embedding_column="title_embedding")
        before = schema_of(database)
        (obstacle,) = [o for o in planned(database, second).obstacles if "would bear the names" in o]
        assert "those of segments_title; rename this table or its embedding column" in obstacle
        with pytest.raises(PhaseError, match="would bear the names of those of segments_title"):
            expand(Migration(database, second), ENCODER.space)
        assert schema_of(database) == before
        expand(first, ENCODER.space)
        assert planned(database, settings).obstacles == ()

    def test_names_of_ours_are_none_of_the_users(self, database, make_settings):
        settings = make_settings()
        expand(Migration(database, settings), ENCODER.space)
        assert planned(database, settings).obstacles == ()
        fill_and_swap(Migration(database, settings))
        assert not [o for o in planned(database, settings).obstacles if "already has" in o]
        retire(Migration(database, settings))
        assert planned(database, settings, HashingEncoder(seed=1)).obstacles == ()


class TestReadOnly:
    @pytest.fixture
    def read_only(self, database):
        """The database, and connections to it that are read-only by default."""
        name = database.url.database
        execute(database, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        with Database(database.url) as read_only:
            yield read_only

    @pytest.mark.parametrize(
        ("prepare", "act"),
        [
            (lambda *_: None, lambda migration: expand(migration, ENCODER.space)),
            (lambda migration: expand(migration, ENCODER.space), lambda migration: backfill(migration, ENCODER)),
            (fill, swap),
            (fill, collapse),
            (fill_and_swap, rollback),
            (fill_and_swap, retire),
        ],
        ids=["expand", "backfill", "swap", "collapse", "rollback", "retire"],
    )
    def test_every_phase_refuses_by_name_with_the_remedy(self, database, settings, prepare, act):
        prepare(Migration(database, settings))
        before = schema_of(database)
        name = database.url.database
        execute(database, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        with Database(database.url) as read_only:
            with pytest.raises(ReadOnlyDatabase, match="default_transaction_read_only is on") as refused:
                act(Migration(read_only, settings))
            assert f'ALTER DATABASE "{name}" RESET default_transaction_read_only' in refused.value.next_step
            assert read_status(Migration(read_only, settings)).rows == 300
        assert schema_of(database) == before

    def test_plan_names_it_as_an_obstacle(self, read_only, settings):
        (obstacle,) = planned(read_only, settings).obstacles
        assert "default_transaction_read_only is on (set for the database)" in obstacle

    def test_a_replica_is_refused_by_name_and_its_status_is_read(self, make_settings):
        primary = OwnServer.temporary()
        standby = None
        try:
            settings = make_settings(database_url=primary.url.render_as_string())
            with Database(primary.url) as database:
                create_demo_table(database, settings, 30)
                execute(database, "CREATE PUBLICATION p FOR ALL TABLES")
                fill(Migration(database, settings))
                put_in_quarantine(database, 1)
                whole = read_status(Migration(database, settings))
            standby = primary.standby()
            with Database(standby.url) as replica:
                assert read_status(Migration(replica, settings)).embedded == whole.embedded == 30
                assert planned(replica, settings).obstacles[0].startswith("this server is a replica")
                with pytest.raises(ReadOnlyDatabase, match="this server is a replica") as refused:
                    swap(Migration(replica, settings))
                assert "primary" in refused.value.next_step
        finally:
            for server in filter(None, (standby, primary)):
                server.remove()


class TestWhatIsLeftBehind:
    @pytest.mark.parametrize(
        "go_back", [collapse, lambda migration: (swap(migration), rollback(migration), collapse(migration))]
    )
    def test_nothing_of_a_first_migration_that_was_undone(self, database, make_settings, go_back):
        settings = make_settings(old_index="keep")
        before = schema_of(database)
        fill(Migration(database, settings))
        go_back(Migration(database, settings))
        assert schema_of(database) == before

    def test_the_journal_of_a_migration_that_stays(self, database, migration, settings):
        fill_and_swap(migration)
        retire(migration)
        following = settings.model_copy(update={"embedding_dimensions": 8})
        expand(Migration(database, following), HashingEncoder(8).space, begin_next=True)
        collapse(migration)
        acts = execute(database, "SELECT act FROM segments_embedding_journal WHERE act <> 'worker' ORDER BY number")
        assert [row[0] for row in acts] == ["expand", "backfill", "swap", "retire", "expand", "collapse"]
