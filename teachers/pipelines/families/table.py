"""Which family a pipeline belongs to, or why none."""

from __future__ import annotations

from teachers.errors import TeacherError
from teachers.pipelines.families.contract import Family
from teachers.pipelines.families.images import AuraFlow, Flux, Lumina2, QwenImage, StableDiffusion3, ZImage
from teachers.pipelines.families.videos import LTXVideo, Wan
from teachers.pipelines.loading import Source, require_flow

FAMILIES: dict[str, Family] = {
    family.pipeline: family
    for family in (
        StableDiffusion3(), AuraFlow(), Flux(), QwenImage(), Lumina2(), ZImage(), Wan(), LTXVideo(),
    )
}  # fmt: skip

#: pipelines whose networks were distilled to something else than a velocity
_NOT_A_VELOCITY = {
    "SanaSprintPipeline": "SANA-Sprint is a TrigFlow consistency model, which is told angles and scales",
    "LatentConsistencyModelPipeline": "a consistency model predicts the end of a path, not its direction",
    "ConsistencyModelPipeline": "a consistency model predicts the end of a path, not its direction",
}


def family_of(name: str) -> Family:
    """The family of a pipeline's class.

    Raises:
        TeacherError: there is none.
    """
    if name not in FAMILIES:
        raise TeacherError(f"no family for a {name}", allowed=", ".join(FAMILIES))
    return FAMILIES[name]


def recognised(source: Source) -> Family:
    """The family of a pipeline on disk.

    Raises:
        TeacherError: it is no velocity field, of another family, or a variant that the family does not cover.
    """
    name = source.pipeline
    if name in _NOT_A_VELOCITY:
        raise TeacherError(
            f"{source.model}: not a velocity field: {_NOT_A_VELOCITY[name]}",
            allowed="flow-matching models",
            do="distill the model that it was made from",
        )
    if name in ("SanaPipeline", "SanaPAGPipeline"):
        raise TeacherError(f"{source.model}: a {name}", do="load it with teacher.type: sana")
    require_flow(source)
    if name not in FAMILIES:
        raise TeacherError(
            f"{source.model}: a {name}, which no adapter here calls",
            allowed=", ".join(FAMILIES),
            do="write one: docs/add-a-teacher.md",
        )
    family = FAMILIES[name]
    if source.config("transformer").get("guidance_embeds") and not family.may_embed_guidance:
        raise TeacherError(
            f"{source.model}: its transformer takes guidance as an input, as no {name} is known to",
            allowed="models with guidance_embeds: false",
        )
    for part in family.text_parts:
        source.part_class(part)
    family.check(source)
    return family
