"""Teachers: what a plugin author imports. Names are resolved on first use, so that a lookup costs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachers.base import Data, Modes, Teacher
    from teachers.conditions import Condition
    from teachers.errors import MfdError, RegistryError, TeacherError
    from teachers.guidance import VelocityField
    from teachers.prompts.contract import PromptTeacher
    from teachers.registry import register, register_data
    from teachers.settings import Settings, Strict, TeacherSettings

_HOMES = {
    "Data": "base", "Modes": "base", "Teacher": "base", "MfdError": "errors", "TeacherError": "errors",
    "Settings": "settings", "Strict": "settings", "TeacherSettings": "settings", "Condition": "conditions",
    "VelocityField": "guidance", "PromptTeacher": "prompts.contract",
    "RegistryError": "errors", "register": "registry", "register_data": "registry",
}  # fmt: skip
__all__ = [
    "Condition", "Data", "MfdError", "Modes", "PromptTeacher", "RegistryError", "Settings", "Strict", "Teacher",
    "TeacherError", "TeacherSettings", "VelocityField", "register", "register_data",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'teachers' has no attribute '{name}'")
    return getattr(import_module(f"teachers.{_HOMES[name]}"), name)
