"""Fixtures of the Dagster tests: a Dagster home on the test server, its records in a database cloned from a template."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import dagster as dg
import pytest
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy.engine import URL

from bge_pipeline.database.connection import Database, normalise_url
from bge_pipeline.definitions import defs
from bge_pipeline.orchestration import run_history
from bge_pipeline.orchestration.dagster_home import environment
from bge_pipeline.orchestration.in_process import keep_connections
from bge_pipeline.orchestration.served import THE_TABLE
from bge_pipeline.settings import Settings
from bge_pipeline_tests.support import administer, copy_database, execute

SLACK_TOKEN = "xoxb-canary-4711"

PARTITION_ROWS = 100
"""Rows of a partition here: three partitions of the demo table."""

KEYS = [f"{number:02d}_{lower}-{lower + PARTITION_ROWS - 1}" for number, lower in enumerate((1, 101, 201), start=1)]


@pytest.fixture(scope="session")
def dagster_template(server_url: URL, worker_id: str) -> Iterator[str]:
    """A database with Dagster's tables, made once, because that takes a second or two."""
    name = f"dagster_template_{worker_id}_{uuid.uuid4().hex[:8]}"
    administer(server_url, f"CREATE DATABASE {name}")
    url = normalise_url(server_url.set(database=name)).render_as_string(hide_password=False)
    DagsterPostgresStorage(url)
    yield name
    administer(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def settings(
    make_settings: Callable[..., Settings],
    dagster_template: str,
    server_url: URL,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Settings]:
    """Settings with a Dagster home of their own, in the environment of this process as a deployment has them."""
    name = f"dagster_test_{uuid.uuid4().hex[:12]}"
    copy_database(server_url, dagster_template, name)
    administer(server_url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    url = server_url.set(database=name).set(drivername="postgresql").render_as_string(hide_password=False)
    settings = make_settings(
        dagster_database_url=url,
        partition_rows=PARTITION_ROWS,
        retry_backoff_seconds=0,
        max_partition_attempts=2,
        quality_gate="off",
    )
    for variable, value in environment(settings).items():
        monkeypatch.setenv(variable, value)
    yield settings
    administer(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The persistent instance that every `dagster` command with this environment uses."""
    with dg.DagsterInstance.get() as instance:
        keep_connections(instance)
        yield instance


UNREADABLE = [
    "{",
    "still",
    "[]",
    '{"seen": 1}',
    '{"at": "noon", "waiting_since": "noon", "record_id": "first"}',
    "\x00",
]
"""Cursors that no version of a sensor wrote for itself."""

CONFIRMED = "public.segments"


def confirming(job: str, confirm: str = CONFIRMED) -> dict[str, object]:
    """The run config of rollback_job, retire_job or adopt_table_job in which somebody typed `confirm`."""
    op = {"rollback_job": "roll_back", "retire_job": "retire_old_column", "adopt_table_job": "adopt_table"}[job]
    return {"ops": {op: {"config": {"confirm": confirm}}}}


def consenting(**settings: str) -> dict[str, object]:
    """The run config in which somebody said yes to a step of a migration."""
    return {"resources": {"settings": {"config": settings}}}


class Runner:
    """Runs jobs in this process, on the persistent instance."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance

    def __call__(
        self, job: str, partition: str | None = None, *, tags: dict[str, str] | None = None, run_config: object = None
    ) -> dg.ExecuteInProcessResult:
        """The result of a run, failed or not."""
        return defs.resolve_job_def(job).execute_in_process(
            instance=self._instance,
            partition_key=partition,
            tags=tags,
            run_config=run_config,
            raise_on_error=False,
        )

    def migrate(self) -> None:
        """Every phase up to the swap, the whole backfill in one run."""
        assert self("expand_job").success
        assert self.backfill().success
        assert self("swap_job").success

    def retire(self) -> dg.ExecuteInProcessResult:
        """Drop the old vectors, confirmed."""
        return self("retire_job", run_config=confirming("retire_job"))

    def rollback(self) -> dg.ExecuteInProcessResult:
        """Exchange the columns back, confirmed."""
        return self("rollback_job", run_config=confirming("rollback_job"))

    def backfill(self, first: str = KEYS[0], last: str = KEYS[-1]) -> dg.ExecuteInProcessResult:
        """One run over a range of partitions."""
        return self(
            "backfill_job",
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        )


@pytest.fixture
def run(instance: dg.DagsterInstance) -> Runner:
    """Runs a job in this process."""
    return Runner(instance)


def insert_segment(database: Database, identifier: int) -> None:
    """A new row of the application's, with the old model's vector."""
    execute(
        database,
        "INSERT INTO segments (id, source_id, video_id, start_sec, end_sec, text, embedding) "
        f"SELECT {identifier}, source_id, video_id, {identifier}, {identifier} + 1, text, NULL FROM segments "
        "ORDER BY id LIMIT 1",
    )


def request_backfill(instance: dg.DagsterInstance, keys: list[str]) -> None:
    """A backfill as the UI requests one; no daemon is there to begin it."""
    from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

    asset = dg.AssetKey("backfilled_embeddings")
    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id="requested",
            asset_graph=defs.resolve_asset_graph(),
            partition_names=keys,
            asset_selection=[asset],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
    )
    assert [backfill.status for backfill in run_history.backfills_under_way(instance, THE_TABLE)] == [
        BulkActionStatus.REQUESTED
    ]


def repeat(instance: dg.DagsterInstance, parent: dg.DagsterRun) -> dg.DagsterRun:
    """The run that Re-execute in the UI, and Dagster's own retries, make of another; nothing executes it."""
    from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
    from dagster._core.remote_origin import InProcessCodeLocationOrigin
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceLoadTarget

    class ThisProcess(WorkspaceLoadTarget):
        def create_origins(self) -> list[InProcessCodeLocationOrigin]:
            module = LoadableTargetOrigin(module_name="bge_pipeline.definitions", attribute="defs")
            return [InProcessCodeLocationOrigin(module, location_name="bge_pipeline")]

    with WorkspaceProcessContext(instance, ThisProcess()) as workspace:
        request = workspace.create_request_context()
        (location,) = request.code_locations
        (repository,) = location.get_repositories().values()
        return instance.create_reexecuted_run(
            request_context=request,
            parent_run=parent,
            code_location=location,
            remote_job=repository.get_full_job(parent.job_name),
            strategy=ReexecutionStrategy.ALL_STEPS,
            use_parent_run_tags=True,
        )


def report(instance: dg.DagsterInstance, run: dg.DagsterRun, *events: dg.DagsterEventType) -> dg.DagsterRun:
    """The run as it is after these events of it."""
    for event in events:
        instance.report_dagster_event(dg.DagsterEvent(event.value, run.job_name), run.run_id)
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def checks_of(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """Names of the checks that a run has answered."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    events = [record.event_log_entry.dagster_event for record in records]
    return [event.asset_check_evaluation_data.check_name for event in events if event is not None]


class Slack:
    """A server that takes messages as Slack does, and keeps them."""

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.tokens: list[str] = []
        self.answer = '{"ok": true, "ts": "1"}'
        keeper = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                is_json = "json" in self.headers["Content-Type"]
                fields = json.loads(body) if is_json else {key: values[0] for key, values in parse_qs(body).items()}
                keeper.messages.append(fields | {"path": self.path})
                keeper.tokens.append(self.headers["Authorization"])
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(keeper.answer.encode())

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/api/"


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slack]:
    """A channel that is listened to, and the settings that name it."""
    pytest.importorskip("dagster_slack", reason="needs the extra `slack`")
    slack = Slack()
    threading.Thread(target=slack.server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SLACK_TOKEN", SLACK_TOKEN)
    monkeypatch.setenv("SLACK_CHANNEL", "#search")
    monkeypatch.setenv("SLACK_API_URL", slack.url)
    monkeypatch.setenv("DAGSTER_URL", "http://127.0.0.1:3000")
    yield slack
    slack.server.shutdown()
    slack.server.server_close()
