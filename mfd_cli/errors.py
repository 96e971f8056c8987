"""Errors that reach the user; all are `MfdError`s (see `teachers.errors` for its three parts)."""

from __future__ import annotations

from teachers.errors import MfdError, RegistryError, TeacherError

__all__ = ["Interrupted", "MfdError", "NewerFormat", "RegistryError", "RunStopped", "TeacherError"]


class RunStopped(MfdError):
    """A run that stopped itself (non-finite numbers, no disk space); its last good checkpoint is kept. Exit code 3."""

    exit_code = 3


class NewerFormat(MfdError):
    """A file of a later mfd: whole, and not to be written over."""


class Interrupted(MfdError):
    """A run that was told to stop (Ctrl-C: 130, SIGTERM: 143) and has saved a checkpoint to continue from."""

    def __init__(self, found: str, *, exit_code: int, do: str | None = None) -> None:
        super().__init__(found, do=do)
        self.exit_code = exit_code
