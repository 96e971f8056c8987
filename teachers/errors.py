"""The error that every mistake of a user becomes, here and in the command line."""

from __future__ import annotations


class MfdError(Exception):
    """A message for the user in up to three parts.

    The command line prints it without a traceback and exits with `exit_code`; 2 means that the input is wrong and
    nothing was written.

    Args:
        found: what was found, and where (a path, a recipe key, an update).
        allowed: what would have been accepted.
        do: the next thing to try.
    """

    exit_code = 2

    def __init__(self, found: str, *, allowed: str | None = None, do: str | None = None) -> None:
        self.found, self.allowed, self.do = found, allowed, do
        super().__init__("\n".join(part for part in (found, allowed, do) if part))


class TeacherError(MfdError):
    """A teacher or data source that cannot be loaded, or cannot do what it was asked."""


class RegistryError(MfdError):
    """A name that is not registered, is taken, or whose plugin cannot be imported."""
