"""Base classes of recipe blocks. Free of torch, so that a recipe is checked without it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A block of a recipe: unknown keys and wrong types are refused, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Settings(Strict):
    """A block whose `type` names a registered class; that class adds its own keys by subclassing."""

    type: str = Field(description="Registered name.")


class TeacherSettings(Settings):
    """What every teacher accepts."""

    guidance: float = Field(
        1.0, ge=0, description="Classifier-free guidance scale of the teacher; 1 is none, else evaluations cost double."
    )
    weak: str | None = Field(
        None,
        description="Weights of a weaker teacher of the same kind: guidance is then against it (autoguidance) "
        "instead of against the unconditional branch.",
    )
    steps: int = Field(
        10, ge=1, description="Euler steps of the teacher's own sampler, which the student is held against."
    )
    shift: float = Field(
        1.0, gt=0, description="Time shift of the teacher's sampler; above 1 moves steps towards noise."
    )
