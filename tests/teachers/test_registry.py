"""Names to classes: built in, decorated, installed; near misses; a broken package harms only itself."""

from importlib.metadata import EntryPoint

import pytest

from teachers import registry
from teachers.errors import RegistryError
from teachers.registry import Registry

GROUP = "mfd.test"


@pytest.fixture
def names(monkeypatch):
    installed = [
        EntryPoint("fraction", "fractions:Fraction", GROUP),
        EntryPoint("broken", "no_such_module_at_all:Thing", GROUP),
        EntryPoint("gone", "fractions:NoSuchClass", GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: installed if group == GROUP else [])
    return Registry("teacher", GROUP, {"decimal": "decimal:Decimal"})


def test_built_in_and_installed(names):
    from decimal import Decimal
    from fractions import Fraction

    assert names.get("decimal") is Decimal and names.get("fraction") is Fraction
    assert names.names() == ["broken", "decimal", "fraction", "gone"]
    assert names.origin("decimal") == "built in"


def test_the_decorator_returns_and_registers_the_class(names):
    @names.register("mine")
    class Mine:
        pass

    assert names.get("mine") is Mine and "mine" in names.names() and names.origin("mine") == "plugin"


def test_a_plugin_may_be_imported_twice_but_not_replace_another(names):
    def define(name):
        return type(name, (), {})

    names.register("mine")(define("Mine"))
    names.register("mine")(define("Mine"))
    with pytest.raises(RegistryError, match="already registered"):
        names.register("mine")(define("Other"))


def test_a_built_in_name_is_taken(names):
    with pytest.raises(RegistryError, match="built in") as caught:
        names.register("decimal")(type("Decimal", (), {}))
    assert caught.value.do == "register under another name"


def test_an_unknown_name_lists_what_exists_and_the_nearest(names):
    with pytest.raises(RegistryError) as caught:
        names.get("decimel")
    assert caught.value.found == "unknown teacher 'decimel'"
    assert "decimal, fraction" in caught.value.allowed and caught.value.do == "did you mean 'decimal'?"
    with pytest.raises(RegistryError) as caught:
        names.get("zzzzzz")
    assert "--plugin" in caught.value.do


@pytest.mark.parametrize(("name", "reason"), [("broken", "ModuleNotFoundError"), ("gone", "AttributeError")])
def test_a_broken_package_is_named_and_breaks_nothing_else(names, name, reason):
    with pytest.raises(RegistryError, match=f"'{name}' could not be imported: {reason}"):
        names.get(name)
    assert names.get("fraction") and name in names.names()


def test_the_shipped_names_can_be_imported():
    for shipped in (registry.teachers, registry.data):
        for name in shipped._builtin:
            assert isinstance(shipped.get(name), type)


def test_public_names_of_the_package():
    import teachers

    assert all(getattr(teachers, name) is not None for name in teachers.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = teachers.nothing
