"""No password and no key in any output, file, database or list of processes, whatever a command does and however it fails."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy.engine import URL

from bge_pipeline import cli
from bge_pipeline.database.connection import Database
from bge_pipeline.settings import load_settings
from bge_pipeline_tests.endpoint_server import EndpointServer, error
from bge_pipeline_tests.own_server import OwnServer
from bge_pipeline_tests.security.canaries import API_KEY, PASSWORD, WRONG, Sightings
from bge_pipeline_tests.support import execute, put_in_quarantine, wait_until

pytestmark = pytest.mark.pgvector

LIFE = [
    ("discover",),
    ("init", "--table", "segments", "--model", "some-model", "--dimensions", "384", "--yes"),
    ("plan", "--yes"),
    ("plan", "--json", "--yes"),
    ("swap",),
    ("expand", "--yes"),
    ("backfill", "--until", "50%"),
    ("quarantine", "list"),
    ("quarantine", "retry", "3"),
    ("quarantine", "drop", "4", "--yes"),
    ("pause", "--reason", "lunch"),
    ("resume",),
    ("alembic", "current"),
    ("migrate", "--yes"),
    ("status",),
    ("status", "--json"),
    ("metrics", "--once"),
    ("doctor", "--html", "doctor.html"),
    ("embed",),
    ("text-index",),
    ("search", "generators", "--mode", "hybrid", "--explain"),
    (
        "compare",
        "--model",
        "hashing",
        "--model",
        "endpoint:some-model@384",
        "--texts",
        "20",
        "--html",
        "m.html",
        "--yes",
    ),
    ("compare-search", "how is a generator closed"),
    ("benchmark", "--texts", "8", "--batch-size", "8"),
    ("rollback", "--yes"),
    ("migrate", "--yes"),
    ("retire", "--yes"),
    ("alembic", "upgrade", "head"),
    ("alembic", "upgrade", "head", "--sql"),
    ("demo", "--rows", "20", "--database-url", "postgresql://nobody@127.0.0.1:1/app", "--yes"),
    ("dev", "--host", "192.0.2.1"),
]
"""Every command, and some that fail, in an order in which the table goes all the way."""
ONCE = {line[0]: line for line in LIFE}

Run = Callable[..., tuple[int, str]]


def unreachable(url: URL) -> dict[str, str]:
    """URLs that let nobody in, or are none, by what is wrong with them."""
    socket = url.query["host"]
    return {
        "a wrong password": url.set(password=WRONG).render_as_string(hide_password=False),
        "a wrong user": url.set(username="nobody", password=WRONG).render_as_string(hide_password=False),
        "no such database": url.set(database="nowhere", password=PASSWORD).render_as_string(hide_password=False),
        "nobody listens": f"postgresql://keeper:{WRONG}@127.0.0.1:1/app?sslpassword={WRONG}&options=-c%20my.token%3D{WRONG}",
        "no such host": f"postgresql://keeper:{WRONG}@no-such-host.invalid/app",
        "in the query": f"postgresql:///app?host={socket}&user=keeper&password={WRONG}",
        "twice in the query": f"postgresql:///app?host={socket}&user=keeper&password={WRONG}&password={WRONG}",
        "in capitals": f"postgresql:///app?host={socket}&user=keeper&PASSWORD={WRONG}",
        "misspelled": f"postgresql:///app?host={socket}&user=keeper&pasword={WRONG}",
        "an at sign": f"postgresql://keeper:begin@{WRONG}@127.0.0.1:1/app",
        "an escaped colon": f"postgresql://keeper%3A{WRONG}@127.0.0.1:1/app",
        "in the database's name": f"postgresql://127.0.0.1:1/keeper:{WRONG}@app",
        "no scheme": f"keeper:{WRONG}@127.0.0.1:1/app",
        "another database": f"mysql://keeper:{WRONG}@127.0.0.1:1/app",
        "as libpq writes it": f"host=127.0.0.1 port=1 user=keeper password={WRONG}",
        "in the port": f"postgresql://keeper@127.0.0.1/app?port={WRONG}",
        "an option of the server": url.set(password=PASSWORD)
        .update_query_dict({"options": f"-c work_mem=1MB -c my.token={WRONG} -c nonsense"})
        .render_as_string(hide_password=False),
    }


@pytest.fixture
def surroundings(surroundings: dict[str, str]) -> dict[str, str]:
    """With as little to measure as there may be, and narrow lines, over which a secret would be broken."""
    return surroundings | {
        "QUALITY_GATE": "warn",
        "QUALITY_MAX_QUERIES": "10",
        "QUALITY_SAMPLE_ROWS": "20",
        "OPERATOR_WAIT_SECONDS": "1",
        "COLUMNS": "60",
    }


@pytest.fixture
def in_this_process(
    surroundings: dict[str, str],
    sightings: Sightings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Run:
    """Runs a command by its `main`; exit code and output, in which no canary was found."""
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "work")
    caplog.set_level(logging.DEBUG)

    def run(*arguments: str, **variables: str) -> tuple[int, str]:
        with monkeypatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            patched.setattr(sys, "argv", ["bge-pipeline", *arguments])
            code = exit_code_of(cli.main)
        said = "".join(capfd.readouterr())
        sightings.look(" ".join(arguments), said + caplog.text)
        caplog.clear()
        return code, said

    return run


def exit_code_of(main: Callable[[], None]) -> int:
    """What a process that runs it would end with."""
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def in_own_process(surroundings: dict[str, str], sightings: Sightings, tmp_path: Path) -> Run:
    """Runs a command as a process of its own, told to say whatever Python can say of a crash."""

    def run(*arguments: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-X", "faulthandler", "-W", "ignore", "-m", "bge_pipeline", *arguments],
            env=os.environ | surroundings | variables,
            cwd=tmp_path / "work",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        said = done.stdout + done.stderr
        sightings.look(" ".join(arguments), said)
        return done.returncode, said

    return run


@pytest.fixture(params=["in_this_process", pytest.param("in_own_process", marks=pytest.mark.thorough)])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue(request.param)
    return found


def commands() -> set[str]:
    """The names of all commands, groups as one."""
    group: Any = typer.main.get_command(cli.app)
    return set(group.commands)


def test_every_command_is_tried():
    assert {line[0] for line in LIFE} == commands()


def test_a_whole_migration_and_what_goes_wrong_on_the_way_show_none(
    run: Run, guarded: OwnServer, guarded_url: URL, server: EndpointServer, sightings: Sightings, tmp_path: Path
):
    codes = {}
    with sightings.watching_processes():
        for line in LIFE:
            if line[:2] == ("quarantine", "retry"):
                with Database(guarded_url) as database:
                    put_in_quarantine(database, 3, 4)
            codes[line], said = run("-v", *line)
            assert "Traceback" not in said, line
        server.rule = lambda _: (401, {}, error(f"Incorrect API key {API_KEY}"))
        refused, said = run("-v", "search", "why")
    assert (refused, "EMBEDDING_API_KEY is missing or not accepted" in " ".join(said.split())) == (2, True)
    meant_to_fail = {"swap": 3, "demo": 4, "dev": 2}
    assert {line: code for line, code in codes.items() if code} == {
        ONCE[name]: code for name, code in meant_to_fail.items()
    }

    assert (tmp_path / "work" / ".env").stat().st_mode & 0o777 == 0o600
    sightings.look_into_folder(tmp_path, but=(".env",))
    sightings.look("the server's log", guarded.log)
    with Database(guarded.url.set(database="app")) as database:
        sightings.look_into_database(database)
    assert any(path.suffix == ".html" for path in (tmp_path / "home").rglob("*"))
    sightings.assert_none()


@pytest.mark.parametrize("name", ONCE)
def test_no_command_shows_one_when_it_is_not_let_in(
    in_this_process: Run, sightings: Sightings, guarded_url: URL, name: str
):
    url = unreachable(guarded_url)["a wrong password"]
    code, said = in_this_process("-v", *ONCE[name], DATABASE_URL=url, DAGSTER_DATABASE_URL=url)
    if name == "metrics":
        assert code == 0  # and a metric says that the table cannot be read
    elif "--sql" not in ONCE[name]:
        assert code in (2, 4)
    assert "Traceback" not in said
    sightings.assert_none()


def test_no_url_shows_one(run: Run, sightings: Sightings, guarded_url: URL):
    for what, url in unreachable(guarded_url).items():
        code, said = run("-v", "status", DATABASE_URL=url)
        assert code in (2, 4), (what, said)
        assert "Traceback" not in said, what
    sightings.assert_none()


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        ("status", "EMBEDDING_API_KEY", f"{WRONG}ä"),
        ("status", "EMBEDDING_API_KEY", f"{WRONG} and more"),
        ("status", "QUERY_EXPANSION_KEY", f"{WRONG}\x01"),
        ("status", "EMBEDDING_API_URL", f"https://me:{WRONG}@host/v1"),
        ("plan", "EMBEDDING_API_URL", WRONG),
        ("plan", "EMBEDDING_API_URL", f"https://[{WRONG}"),
        ("status", "QUERY_EXPANSION_URL", f"https://host/v1?key={WRONG}"),
        ("status", "REPORTS_URL", f"https://me:{WRONG}@host/reports"),
        ("status", "REPORTS_URL", f"ftp://{WRONG}"),
        ("status", "DAGSTER_URL", f"https://me:{WRONG}@host"),
        ("status", "DAGSTER_URL", f"https://me:1/{WRONG}@host"),
        ("status", "SLACK_API_URL", f"https://host:{WRONG}/api"),
        ("status", "DAGSTER_DATABASE_URL", f"postgresql://me:a@{WRONG}@host/db"),
    ],
)
def test_no_setting_that_is_refused_is_repeated(
    in_this_process: Run, sightings: Sightings, command: str, variable: str, value: str
):
    code, said = in_this_process("-v", *ONCE[command], **{variable: value})
    assert code == 2, said
    assert variable in said
    sightings.assert_none()


def test_a_key_from_a_file_may_end_in_a_line_break(in_this_process: Run, server: EndpointServer, sightings: Sightings):
    assert in_this_process("plan", "--yes", EMBEDDING_API_KEY=f"{API_KEY}\n")[0] == 0
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {API_KEY}"}
    sightings.assert_none()


def test_who_writes_a_password_on_the_command_line_is_told_who_sees_it(in_this_process: Run, guarded_url: URL):
    url = guarded_url.render_as_string(hide_password=False)
    told = "seen by everybody who lists the processes"
    for arguments in (("--set", f"DATABASE_URL={url}", "status"), ("demo", "--database-url", url)):
        assert told in " ".join(in_this_process(*arguments)[1].split())
    assert told not in " ".join(
        in_this_process("--set", "DATABASE_URL=postgresql://me@127.0.0.1:1/a", "status")[1].split()
    )
    code, said = in_this_process("--set", f"DATABASE_ULR={url}", "status")
    assert (code, "did you mean DATABASE_URL?" in said, PASSWORD in said) == (2, True, False)
    code, said = in_this_process("--set", url.partition("?")[0], "status")
    assert (code, "expected NAME=VALUE" in said, PASSWORD in said) == (2, True, False)


@pytest.mark.thorough
@pytest.mark.parametrize("end", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_shows_none(
    surroundings: dict[str, str], sightings: Sightings, guarded_url: URL, tmp_path: Path, end: int
):
    with Database(guarded_url) as database:
        execute(
            database,
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END $$",
        )
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "bge_pipeline", "-v", "expand", "--yes"],
            env=os.environ | surroundings, cwd=tmp_path / "work",
        )  # fmt: skip
        assert process.wait(60) == 0
        execute(database, "CREATE TRIGGER d BEFORE UPDATE ON segments FOR EACH ROW EXECUTE FUNCTION dawdle()")
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "bge_pipeline", "-v", "backfill"],
            env=os.environ | surroundings,
            cwd=tmp_path / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        wait_until(lambda: execute(database, sleeping), 60)
        process.send_signal(end)
        said, _ = process.communicate(timeout=60)
        sightings.look_into_database(database)
    assert process.returncode == -end
    assert "Current thread" in said or "Thread 0x" in said
    sightings.look("what the crash printed", said)
    sightings.look_into_folder(tmp_path)
    sightings.assert_none()


UNFORESEEN = """
import sys
from bge_pipeline import cli
from bge_pipeline.cli import operating

def broken(*_):
    raise ZeroDivisionError("division by zero")

operating.read_status = broken
sys.argv[1:] = ["-v", "status"]
cli.main()
"""


def test_the_traceback_of_a_mistake_of_ours_shows_none(
    surroundings: dict[str, str], sightings: Sightings, tmp_path: Path
):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", UNFORESEEN],
        env=os.environ | surroundings, cwd=tmp_path / "work", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ZeroDivisionError: division by zero" in done.stderr
    sightings.look("the traceback", done.stderr)
    sightings.look_into_folder(tmp_path)
    sightings.assert_none()


def test_the_search_finds_what_is_there(tmp_path: Path):
    """The judge is judged: broken over lines, in a URL, in base64 and in a file it is found."""
    import base64

    found = Sightings()
    found.look("lines", f"postgresql://{PASSWORD[:9]}\n   {PASSWORD[9:]}")
    found.look("frames", f"│ {PASSWORD[:9]} │\n│ {PASSWORD[9:]} │")
    for before in ("", "a", "ab"):
        found.look("base64", base64.b64encode(f"{before}{PASSWORD} and more".encode()))
    (tmp_path / "dump.bin").write_bytes(b"\x00\xff" + PASSWORD.encode() + b"\x00")
    found.look_into_folder(tmp_path)
    assert [canary for _, canary in found.found] == [PASSWORD] * 6
    with pytest.raises(AssertionError):
        found.assert_none()


def test_settings_are_shown_without_any(
    surroundings: dict[str, str], monkeypatch: pytest.MonkeyPatch, sightings: Sightings
):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    sightings.look("repr", repr(load_settings()) + str(load_settings()))
    sightings.assert_none()
