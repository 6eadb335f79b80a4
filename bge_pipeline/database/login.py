"""Whether a server let nobody in for good, or could not be asked: another attempt helps only with the second."""

from __future__ import annotations

# libpq tells no SQLSTATE of an attempt to connect, only the server's words, which `lc_messages` may translate; a refusal
# that is not recognised counts as a server that cannot be reached, and is tried again.
_REFUSALS = (
    "authentication failed",
    "authentication requires",
    "no password supplied",
    "no pg_hba.conf entry",
    "pg_hba.conf rejects",
    "is not permitted to log in",
    "permission denied for database",
)
_UNKNOWN = ('role "', 'database "')


def refuses_login(message: str) -> bool:
    """Whether this message of an attempt to connect says that user, password, database or access rule are wrong."""
    return any(refusal in message for refusal in _REFUSALS) or any(
        f"FATAL:  {unknown}" in message and "does not exist" in message for unknown in _UNKNOWN
    )
