"""The builders of tiny pipelines, as a fixture: tests are no package that they could be imported from."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build():
    """`build(name)`: a pipeline in memory, of one of the families in tiny_families.py."""
    spec = importlib.util.spec_from_file_location("tiny_families", Path(__file__).with_name("tiny_families.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build


@pytest.fixture(scope="session")
def folders(tmp_path_factory, build):
    """`folders(name)`: a saved pipeline, made when it is first asked for; for reading only."""
    home, made = tmp_path_factory.mktemp("families"), {}

    def of(name):
        if name not in made:
            made[name] = home / name
            build(name).save_pretrained(made[name])
        return made[name]

    return of
