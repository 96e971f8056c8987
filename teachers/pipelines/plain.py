"""Sampling with diffusers alone, to see what everybody without mfd will get. Imports nothing of ours, and cannot.

Run as `python -c TEXT FOLDER`, where TEXT is this file (`teachers.pipelines.saving.script`). FOLDER holds `job.json`
and `inputs.safetensors`, and gets `outputs.safetensors`:

    job      pipeline, folder, variant: what is opened; network: name of the part that predicts; types: of the parts;
             adapter: folder of a LoRA and its scheduler, or null; prompts; call: named arguments; threads
    inputs   latents [B, ...], and embeddings under the names that the call has for them; a list's are NAME/000, ...
    outputs  latents [B, ...] "embeddings", from the given embeddings, and "prompts", from the prompts themselves
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_OURS = ("mfd_cli", "teachers")


def main(folder: Path) -> None:
    """Does the job of a folder.

    Raises:
        ImportError: something tried to import mfd.
    """
    _forbid_ours()
    import torch
    from safetensors.torch import load_file, save_file

    job = json.loads((folder / "job.json").read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    inputs = load_file(folder / "inputs.safetensors")
    pipe = opened(job)
    latents = inputs.pop("latents")
    outputs = {"embeddings": drawn(pipe, job, latents, inputs), "prompts": drawn(pipe, job, latents, {})}
    if any(sys.modules.get(name) is not None for name in _OURS):
        raise ImportError("mfd was imported")
    save_file(outputs, folder / "outputs.safetensors")


def opened(job: dict[str, Any]) -> Any:
    """The pipeline of a job, its network in float32 so that only what is stored makes a difference."""
    import diffusers
    import torch

    diffusers.utils.logging.disable_progress_bar()
    kind = getattr(diffusers, job["pipeline"])
    types = {part: getattr(torch, name) for part, name in job["types"].items()}
    pipe = kind.from_pretrained(
        job["folder"], variant=job["variant"], torch_dtype=types, use_safetensors=True, local_files_only=True
    )
    getattr(pipe, job["network"]).float()
    if job["adapter"] is not None:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler
        pipe.load_lora_weights(job["adapter"])
        pipe.scheduler = scheduler.from_pretrained(job["adapter"], subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, job: dict[str, Any], latents: Any, embeddings: dict[str, Any]) -> Any:
    """Latents [B, ...] from noise [B, ...], and from embeddings or, where there are none, the job's prompts."""
    asked = listed(embeddings) or {"prompt": job["prompts"]}
    given = {**asked, **job["call"], "latents": latents.clone(), "output_type": "latent"}
    return pipe(**given, return_dict=False)[0].contiguous()


def listed(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors, with those named NAME/000, NAME/001, ... as lists."""
    found: dict[str, Any] = {}
    for name in sorted(tensors):
        whole, of_list, _ = name.partition("/")
        if of_list:
            found.setdefault(whole, []).append(tensors[name])
        else:
            found[name] = tensors[name]
    return found


def _forbid_ours() -> None:
    for name in _OURS:
        sys.modules[name] = None  # type: ignore[assignment]  # Python refuses to import what is None here


if __name__ == "__main__":
    main(Path(sys.argv[1]))
