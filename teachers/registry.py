"""Names to classes, without importing a class before it is asked for. Free of torch.

A name comes from one of three places, asked in this order: the built-in table ("module:Class"), a decorator that ran
(`@register("name")`, also in a file given by `--plugin`), an installed entry point of the registry's group.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from teachers.errors import RegistryError

Registered = TypeVar("Registered", bound=type)


class Registry:
    """A dictionary from names to classes of one kind.

    Args:
        kind: the word used in messages ("teacher", "method", "data").
        group: entry-point group that installed packages use to add names.
        builtin: name to "module:Class" of what ships with mfd.
    """

    def __init__(self, kind: str, group: str, builtin: dict[str, str]) -> None:
        self.kind, self.group = kind, group
        self._builtin = dict(builtin)
        self._registered: dict[str, type] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Class decorator that adds the class under `name`.

        Raises:
            RegistryError: another class already has the name.
        """

        def add(cls: Registered) -> Registered:
            held = self._builtin.get(name)
            if held is not None and held != f"{cls.__module__}:{cls.__qualname__}":
                raise RegistryError(f"{self.kind} '{name}' is built in ({held})", do="register under another name")
            other = self._registered.get(name)
            if other is not None and other.__qualname__ != cls.__qualname__:
                raise RegistryError(f"{self.kind} '{name}' is already registered by {other.__module__}")
            self._registered[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """All names that can be asked for, sorted."""
        return sorted({*self._builtin, *self._registered, *self._installed()})

    def get(self, name: str) -> type:
        """The class registered under `name`, imported now if it was not before.

        Raises:
            RegistryError: no such name (with the nearest one), or its module fails to import (with the reason).
        """
        if name in self._registered:
            return self._registered[name]
        try:
            if name in self._builtin:
                module, _, attribute = self._builtin[name].partition(":")
                return getattr(importlib.import_module(module), attribute)
            installed = self._installed()
            if name in installed:
                return installed[name].load()
        except RegistryError:
            raise
        except Exception as error:
            raise RegistryError(
                f"{self.kind} '{name}' could not be imported: {type(error).__name__}: {error}",
                do="install what it needs, or remove the package that provides it",
            ) from error
        raise RegistryError(
            f"unknown {self.kind} '{name}'",
            allowed=f"registered: {', '.join(self.names())}",
            do=self._nearest(name),
        )

    def origin(self, name: str) -> str:
        """Where a name comes from: "built in", "plugin", or the distribution that installed it."""
        if name in self._builtin:
            return "built in"
        if name in self._registered:
            return "plugin"
        distribution = self._installed()[name].dist
        return distribution.name if distribution is not None else "installed"

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def _nearest(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names(), n=1)
        return f"did you mean '{near[0]}'?" if near else "if a file registers it, name that file with --plugin"


teachers = Registry(
    "teacher",
    "mfd.teachers",
    {
        "gmm": "teachers.gmm:GaussianMixtureTeacher",
        "digits": "teachers.digits:DigitsTeacher",
        "images": "teachers.images:ImagesTeacher",
        "occfm": "teachers.occfm.teacher:OccFMTeacher",
        "occfm-tiny": "teachers.occfm.driving:TinyTeacher",
        "sana": "teachers.pipelines.sana:SanaTeacher",
        "diffusers": "teachers.pipelines.family:DiffusersTeacher",
    },
)
data = Registry(
    "data",
    "mfd.data",
    {
        "gmm": "teachers.gmm:GaussianMixtureData",
        "digits": "teachers.digits:DigitsData",
        "images": "teachers.images:ImagesData",
        "driving": "teachers.occfm.driving:DrivingData",
        "occfm": "teachers.occfm.data:OccFMData",
        "prompts": "teachers.prompts.data:PromptData",
    },
)
register = teachers.register
register_data = data.register
