"""A session that takes only the processor time that nobody else on the server's machine wants, where that is this machine.

Linux runs a process of its idle class, as `chrt --idle` does, when no other is ready, and stops it at once when one is. Of
processes in different sessions of the system (a server's each have one) it weighs the sessions, so that theirs has to be lowered
too: sched(7), "The autogroup feature". Without that the class alone changes nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import Error as DriverError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as RawConnection  # noqa: N812
    from sqlalchemy import Connection

logger = logging.getLogger(__name__)

_NICE = 5
"""Of its session: as little felt as 19, and a third of a processor's share where everybody wants one, not a seventieth."""
_ATTEMPTS = 5
_BETWEEN_ATTEMPTS_SECONDS = 0.11
"""The kernel changes one autogroup in a tenth of a second, and refuses the next with EAGAIN."""


def give_way(connection: Connection) -> bool:
    """Put the server's process of this session behind every other; nothing takes that back but the end of the session.

    Returns:
        Whether it was done: the server is reached over a socket of this machine's file system, and its processes belong to this
        user, or this user is root.
    """
    raw = connection.connection.dbapi_connection
    process = _own_server_process(raw) if raw is not None and sys.platform == "linux" else None
    if process is None:
        return False
    try:
        os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        logger.debug("the server's process %d stays as it is: %s", process, error)
        return False
    _lower_autogroup(process)
    return True


def _own_server_process(raw: RawConnection) -> int | None:
    """The process that serves the session, if it certainly runs here: a child of the one that listens at the socket's other end.

    Number and parent alone would not do: a server in a container counts its processes anew, and a pooler listens for it.
    """
    import psutil

    try:
        with socket.socket(fileno=os.dup(raw.fileno())) as channel:
            if channel.family != socket.AF_UNIX:
                return None
            credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        listener: int = struct.unpack("3i", credentials)[0]
        process: int = raw.info.backend_pid
        leads_its_session = os.getsid(process) == process
        return process if leads_its_session and psutil.Process(process).ppid() == listener else None
    except (OSError, DriverError, psutil.Error) as error:
        logger.debug("the server's process is not told to give way: %s", error)
        return None


def _lower_autogroup(process: int) -> None:
    for _ in range(_ATTEMPTS):
        try:
            Path(f"/proc/{process}/autogroup").write_text(str(_NICE))
            return
        except BlockingIOError:
            time.sleep(_BETWEEN_ATTEMPTS_SECONDS)
        except OSError as error:  # a kernel without it weighs the processes themselves
            logger.debug("the autogroup of the server's process %d stays as it is: %s", process, error)
            return
