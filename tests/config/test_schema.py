from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from mfd_cli.config import schema
from mfd_cli.config.load import load_recipe
from mfd_cli.config.schema import completed
from teachers.registry import RegistryError, teachers


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "a/b", "..", "latest", "x" * 101, "a\n"])
def test_a_name_can_be_a_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        schema.TeacherRecipeBase.model_validate(
            {"name": name, "network": {}, "train": schema.TeacherTraining(updates=1, batch_size=1)}
        )


def test_every_key_is_documented() -> None:
    def undocumented(model: type[BaseModel]) -> list[str]:
        inner = [f.annotation for f in model.model_fields.values() if isinstance(f.annotation, type)]
        missing = [f"{model.__name__}.{name}" for name, field in model.model_fields.items() if not field.description]
        return missing + [name for one in inner if issubclass(one, BaseModel) for name in undocumented(one)]

    assert undocumented(schema.RecipeBase) + undocumented(schema.TeacherRecipeBase) == []


def test_a_class_without_settings_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(teachers._registered, "bare", type("Bare", (), {}))
    with pytest.raises(RegistryError, match="teacher 'bare' declares no Settings"):
        schema.settings_of(teachers, "bare")


def test_an_unknown_type_leaves_the_other_blocks_to_be_checked() -> None:
    model = schema.recipe_model(None, "pair", None)
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json('{"name": "a", "train": {"updates": 1}, "method": {"type": "pair", "x": 1}}')
    assert {error["loc"] for error in caught.value.errors()} == {("train", "batch_size"), ("method", "x")}


def test_a_recipe_of_an_earlier_version_gets_the_defaults_of_newer_keys() -> None:
    now = load_recipe("toy").resolved
    earlier = {**now, "method": {key: value for key, value in now["method"].items() if key != "aux_warmup"}}
    assert earlier != now and completed(earlier) == now
    for odd in ({**now, "unheard_of": 1}, {"name": "no blocks"}, {**now, "method": {"type": "unheard-of"}}):
        assert completed(odd) == odd
