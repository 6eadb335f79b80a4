"""Run the statements on standard input; rows with a column `ok` must all be true."""

from __future__ import annotations

import os
import sys

import psycopg2

with psycopg2.connect(os.environ["DATABASE_URL"]) as connection, connection.cursor() as cursor:
    for statement in filter(str.strip, sys.stdin.read().split(";")):
        cursor.execute(statement)
        names = [column.name for column in cursor.description or ()]
        rows = cursor.fetchall()
        for row in rows:
            sys.stdout.write(f"{row}\n")
        if "ok" in names and not (rows and all(row[names.index("ok")] is True for row in rows)):
            sys.exit("a fact does not hold")
