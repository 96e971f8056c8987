"""Pipelines of every family, small enough to build and call in a second: random weights in published layouts."""

from __future__ import annotations

import torch

ALPHABET = "abcdefghijklmnopqrstuvwxyz ,.:<>"
WIDTH = 32


def build(name, **changes):
    """A pipeline in memory; `changes` go to its transformer."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        pipeline = globals()[f"_{name}"](changes)
    for part in ("transformer", "vae"):
        getattr(pipeline, part).eval()
    _stir(pipeline.transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _stir(network):
    """Weights that start at zero or one would hide a wrong argument; these are all random."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.std() == 0 or parameter.numel() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


# -- text ----------------------------------------------------------------------------------------------------------


def _spelling(specials):
    return {token: number for number, token in enumerate([*specials, *ALPHABET])}


def _clip_tokenizer():
    from transformers import CLIPTokenizer

    specials = ["<|startoftext|>", "<|endoftext|>"]
    ends = [f"{character}</w>" for character in ALPHABET if character != " "]
    vocabulary = {token: number for number, token in enumerate([*specials, *ALPHABET.replace(" ", ""), *ends])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _clip(width, projected):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    config = CLIPTextConfig(
        vocab_size=80, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return kind(config).eval()


def _t5_tokenizer():
    from transformers import T5Tokenizer

    space = "\N{LOWER ONE EIGHTH BLOCK}"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (space, -2.0)]
    return T5Tokenizer(vocab=pieces + [(c, -3.0) for c in ALPHABET if c != " "], extra_ids=0, model_max_length=512)


def _t5(kind="T5"):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen_tokenizer():
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *letters])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=specials[1:])
    tokenizer.chat_template = CHAT
    return tokenizer


def _qwen3():
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        vocab_size=300, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=1024,
    )  # fmt: skip
    return Qwen3Model(config).eval()


def _qwen_vl():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": 300, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}, "rope_theta": 1e6,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=1, video_token_id=1, vision_start_token_id=2,
        vision_end_token_id=2,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


# -- autoencoders and schedulers -----------------------------------------------------------------------------------


def _vae(channels, **more):
    """Compression 8, as published: pictures of 32 pixels are latents of 4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=channels, norm_num_groups=4, layers_per_block=1,
        mid_block_add_attention=False, **{"scaling_factor": 1.5305, "shift_factor": 0.0609, **more},
    )  # fmt: skip


def _scheduler(**settings):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


# -- pipelines -----------------------------------------------------------------------------------------------------


def _sd3(changes):
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(**{
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": WIDTH,
        "caption_projection_dim": 16, "pooled_projection_dim": 24, "pos_embed_max_size": 8,
        "dual_attention_layers": (0,), "qk_norm": "rms_norm", **changes,
    })  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=_scheduler(shift=3.0), vae=_vae(4),
        text_encoder=_clip(8, True), tokenizer=_clip_tokenizer(), text_encoder_2=_clip(16, True),
        tokenizer_2=_clip_tokenizer(), text_encoder_3=_t5(), tokenizer_3=_t5_tokenizer(),
    )  # fmt: skip


def _auraflow(changes):
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    transformer = AuraFlowTransformer2DModel(**{
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1,
        "num_single_dit_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
        "joint_attention_dim": WIDTH, "caption_projection_dim": 16, "pos_embed_max_size": 64, **changes,
    })  # fmt: skip
    return AuraFlowPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5("UMT5"), vae=_vae(4, scaling_factor=0.13025, shift_factor=None),
        transformer=transformer, scheduler=_scheduler(shift=1.73),
    )  # fmt: skip


def _flux(changes):
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(**{
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": WIDTH, "pooled_projection_dim": 16,
        "guidance_embeds": True, "axes_dims_rope": (4, 6, 6), **changes,
    })  # fmt: skip
    return FluxPipeline(
        scheduler=_scheduler(shift=3.0, use_dynamic_shifting=True), vae=_vae(4), transformer=transformer,
        text_encoder=_clip(16, False), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip


def _schnell(changes):
    return _flux({"guidance_embeds": False, **changes})


def _qwen(changes):
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(**{
        "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 6, 6), **changes,
    })  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[-0.7, 0.1, -0.9, 0.3],
        latents_std=[2.8, 1.4, 2.3, 0.6],
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=_scheduler(use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02), vae=vae,
        text_encoder=_qwen_vl(), tokenizer=_qwen_tokenizer(), transformer=transformer,
    )  # fmt: skip


def _lumina2(changes):
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    from teachers.pipelines import tiny

    transformer = Lumina2Transformer2DModel(**{
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 1,
        "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16,
        "axes_dim_rope": (4, 4, 4), "axes_lens": (300, 16, 16), "cap_feat_dim": WIDTH, **changes,
    })  # fmt: skip
    return Lumina2Pipeline(
        transformer=transformer, scheduler=_scheduler(shift=6.0), vae=_vae(4),
        text_encoder=tiny._text_encoder(tiny.TINY["mfd/sana-tiny"]).eval(), tokenizer=tiny._tokenizer(),
    )  # fmt: skip


def _zimage(changes):
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(**{
        "in_channels": 4, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
        "cap_feat_dim": WIDTH, "axes_dims": [4, 6, 6], "axes_lens": [256, 64, 64], **changes,
    })  # fmt: skip
    return ZImagePipeline(
        scheduler=_scheduler(shift=3.0), vae=_vae(4), text_encoder=_qwen3(), tokenizer=_qwen_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


def _wan(changes, **pipeline):
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(**{
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": WIDTH,
        "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32, **changes,
    })  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[-0.7, 0.1, -0.9, 0.3],
        latents_std=[2.8, 1.4, 2.3, 0.6],
    )  # fmt: skip
    return WanPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5("UMT5"), vae=vae, scheduler=_scheduler(shift=5.0),
        transformer=transformer, **pipeline,
    )  # fmt: skip


def _wan_expanded(changes):
    return _wan(changes, expand_timesteps=True)


def _ltx(changes):
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(**{
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12,
        "cross_attention_dim": 24, "num_layers": 2, "caption_channels": WIDTH, **changes,
    })  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    vae.latents_mean.copy_(torch.tensor([-0.2, 0.1, 0.3, -0.1]))
    vae.latents_std.copy_(torch.tensor([1.5, 0.7, 1.1, 0.9]))
    scheduler = _scheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    return LTXPipeline(
        scheduler=scheduler, vae=vae, text_encoder=_t5(), tokenizer=_t5_tokenizer(), transformer=transformer
    )
