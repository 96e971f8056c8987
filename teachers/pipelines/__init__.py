"""Teachers that are pipelines of diffusers: SANA and other flow-matching models."""
