"""The configurations of diffusers' pipelines: read as sizes of our networks, and written from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.diffusion.prediction import Prediction
from sfumato.io.origin import Origin
from sfumato.io.said import factor_of_latents
from sfumato.io.shapes import TextNames
from sfumato.models.config import ClipConfig, Conditioning, ModelConfig, sized
from sfumato.nets.autoencoder import AutoencoderSize
from sfumato.nets.tiny import TinySize
from sfumato.nets.transformer import TransformerSize
from sfumato.nets.unet import UNetSize

INDEX = "model_index.json"
SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": Prediction.EPS, "v_prediction": Prediction.V, "sample": Prediction.X0}
VERSION = "0.30.0"  # of diffusers, whose names these are
MOST = 10**7  # characters of a configuration
QUICK_PAD, ENDS = 49407, {"!": 0, "<|endoftext|>": 49407}

Meant = Mapping[str, tuple[Any, ...]]
"""What a key may say, for our networks mean nothing else. Keys that are not said are as they should be."""
NOTED = {
    "sample_size",
    "dropout",
    "force_upcast",
    "num_train_timesteps",
    "up_block_types",
    "addition_embed_type_num_heads",
}
UNET_MEANT: Meant = {
    "center_input_sample": (False,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    "act_fn": ("silu", "swish"),
    "norm_num_groups": (32,),
    "attn_norm_num_groups": (None, 32),
    "time_embedding_type": ("positional",),
    "resnet_out_scale_factor": (1,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "projection", "timestep"),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "add_attention": (True,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
}
LINEAGES: dict[str, Meant] = {
    "adm": {"freq_shift": (0,), "downsample_padding": (1,), "norm_eps": (1e-5,)},
    "ddpm": {"freq_shift": (1,), "downsample_padding": (0,), "norm_eps": (1e-6,)},
}
UNET_READ = {
    *("block_out_channels", "down_block_types", "cross_attention_dim", "in_channels", "out_channels"),
    *("num_attention_heads", "attention_head_dim", "only_cross_attention", "flip_sin_to_cos", "num_class_embeds"),
    *("layers_per_block", "transformer_layers_per_block", "projection_class_embeddings_input_dim"),
    *("upcast_attention", "use_linear_projection"),
}
STAGE_MEANT: Meant = {
    "act_fn": ("silu", "swish"),
    "norm_num_groups": (32,),
    "norm_type": ("group",),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "lookup_from_codebook": (False, True),
}
STAGE_READ = {
    *("block_out_channels", "down_block_types", "in_channels", "out_channels", "latent_channels", "layers_per_block"),
    *("num_vq_embeddings", "vq_embed_dim", "scaling_factor", "mid_block_add_attention"),
}
TINY = "AutoencoderTiny"
TINY_MEANT: Meant = {
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
    "in_channels": (3,),
    "out_channels": (3,),
    "scaling_factor": (1,),
    "shift_factor": (0,),
}
TINY_READ = {"latent_magnitude", "latent_shift"}  # of latents kept as bytes, which neither half asks


def read_json(path: Path) -> dict[str, Any]:
    """A configuration; ValueError if it is not there or not one."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST + 1)
        found = json.loads(text) if len(text) <= MOST else None
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; the folder is not complete") from None
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path} is not readable as JSON; copy it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a configuration; copy it again")
    return found


def unet(path: Path, first: AutoencoderSize | None) -> tuple[UNetSize, bool, int]:
    """A U-Net's size, whether its projections are matrices, and its pixels a side; ValueError for what it cannot be."""
    said = read_json(path)
    try:
        fields = _unet_fields(said, first)
        lineage = fields["lineage"]
        side = 64 if said.get("sample_size") is None else said["sample_size"]
        side = side[0] if isinstance(side, list) else side
    except (KeyError, TypeError, IndexError, ZeroDivisionError, AttributeError, ValueError):
        raise ValueError(f"{path} is not the configuration of a U-Net that is known here") from None
    _as_meant(said, {**UNET_MEANT, **LINEAGES[lineage]}, UNET_READ, path)
    size = sized(UNetSize, path, **fields)
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"{path}: sample_size {side!r} is not a number of pixels")
    return size, bool(said.get("use_linear_projection")), side


def _unet_fields(said: dict[str, Any], first: AutoencoderSize | None) -> dict[str, Any]:
    widths, downs = said["block_out_channels"], said["down_block_types"]
    conditional = said.get("_class_name") == "UNet2DConditionModel" or "cross_attention_dim" in said
    channels = first.latent_channels if first else said["out_channels"]
    heads = said.get("num_attention_heads") or said.get("attention_head_dim", 8)
    crossing = said.get("only_cross_attention") or False
    crossing = [crossing] * len(widths) if isinstance(crossing, bool) else crossing
    return {
        "channels": channels,
        "width": widths[0],
        "mult": [w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths],
        "blocks": said.get("layers_per_block", 2),
        "attention": [2**i for i, name in enumerate(downs) if "Attn" in name],
        "attends": "transformer" if conditional else "plain",
        "depth": said.get("transformer_layers_per_block", 1),
        "context_dim": said["cross_attention_dim"] if conditional else None,
        "cross_only": [2**i for i, only in enumerate(crossing) if only],
        "vector_dim": said.get("projection_class_embeddings_input_dim"),
        "classes": said.get("num_class_embeds"),
        "map_channels": said["in_channels"] - channels,
        "out_channels": None if said["out_channels"] == channels else said["out_channels"],
        "modulation": "scale_shift" if said.get("resnet_time_scale_shift") == "scale_shift" else "add",
        "dropout": said.get("dropout", 0.0),
        "upcast": bool(said.get("upcast_attention")),
        "lineage": "adm" if said.get("flip_sin_to_cos", True) else "ddpm",
        **_heads(heads, widths, conditional=conditional),
    }


def _heads(said: Any, widths: list[int], *, conditional: bool) -> dict[str, Any]:
    """UNet2DConditionModel has the number of heads, though it calls it attention_head_dim; UNet2DModel their width."""
    if not conditional:
        return {"head_dim": said} if said else {"heads": 1}
    if isinstance(said, int):
        return {"heads": said}
    dims = {w / h for w, h in zip(widths, said, strict=True)}
    (dim,) = dims  # ValueError if heads of several widths are there at once
    return {"head_dim": int(dim)}


def first_stage(path: Path) -> tuple[AutoencoderSize, float]:
    """The size of a first stage, and what its latents are multiplied by; ValueError for what it cannot be."""
    said = read_json(path)
    vq = "num_vq_embeddings" in said
    try:
        widths = said["block_out_channels"]
        embedded = said.get("vq_embed_dim") if vq else None
        fields = {
            "channels": widths[0],
            "mult": [w // widths[0] for w in widths],
            "blocks": said.get("layers_per_block", 1),
            "latent_channels": embedded or said["latent_channels"],
            "z_channels": said["latent_channels"] if embedded else None,
            "image_channels": said.get("in_channels", 3),
            "attention": [2**i for i, name in enumerate(said["down_block_types"]) if "Attn" in name],
            "middle_attention": said.get("mid_block_add_attention", True),
            "codebook": said["num_vq_embeddings"] if vq else None,
        }
    except (KeyError, TypeError, IndexError, ZeroDivisionError):
        raise ValueError(f"{path} is not the configuration of a first stage that is known here") from None
    _as_meant(said, STAGE_MEANT, STAGE_READ, path)
    return sized(AutoencoderSize, path, **fields), factor_of_latents(said.get("scaling_factor", 0.18215), path)


def is_tiny(path: Path) -> bool:
    """Whether a configuration is of a tiny first stage."""
    return read_json(path).get("_class_name") == TINY


def check_tiny(path: Path, size: TinySize) -> None:
    """ValueError, naming the key, if a tiny first stage's configuration says another than a network of this size."""
    widths, counts = [size.width] * (size.levels + 1), [size.blocks] * size.levels
    own: Meant = {
        "latent_channels": (size.latent_channels,),
        "encoder_block_out_channels": (widths,),
        "decoder_block_out_channels": (widths,),
        "block_out_channels": (widths,),
        "num_encoder_blocks": ([1, *counts],),
        "num_decoder_blocks": ([*counts, 1],),
    }
    _as_meant(read_json(path), {**TINY_MEANT, **own}, TINY_READ, path)


def _as_meant(said: Mapping[str, Any], meant: Meant, read: set[str], path: Path) -> None:
    """ValueError, naming the key, if a configuration says what our network would not do."""
    for key, value in said.items():
        if key.startswith("_") or key in read or key in NOTED:
            continue
        allowed = meant.get(key, (None, False, [], ""))
        if not any((value == one and type(value) is not bool) or value is one for one in allowed):
            raise ValueError(f"{path} says {key}: {json.dumps(value)[:60]}, which is not known here")


def text(path: Path) -> ClipConfig:
    """CLIP's text tower; ValueError if it is another."""
    said = read_json(path)
    said = said.get("text_config") or said
    try:
        dim, heads, activation = said["hidden_size"], said["num_attention_heads"], said.get("hidden_act", "quick_gelu")
        plain = said["intermediate_size"] == 4 * dim and said.get("layer_norm_eps", 1e-5) == 1e-5  # noqa: PLR2004
        fields = {
            "dim": dim,
            "depth": said["num_hidden_layers"],
            "length": said.get("max_position_embeddings", 77),
            "heads": heads,
            "dim_head": dim // heads,
            "activation": activation,
        }
    except (KeyError, TypeError, ZeroDivisionError):
        plain, fields = False, {}
    if not plain:
        raise ValueError(f"{path} is not the configuration of a CLIP text encoder that is known here")
    size = sized(TransformerSize, path, causal=True, bias=True, **fields)
    pad = _pad(path.parent.parent / "tokenizer" / "tokenizer_config.json", size)
    return sized(ClipConfig, path, encoder=size, vocabulary=said.get("vocab_size", 49408), pad=pad)


def _pad(path: Path, size: TransformerSize) -> int:
    """The id of the padding: what the tokenizer says, else by the kind of text tower."""
    said = read_json(path).get("pad_token") if path.is_file() else None
    said = said.get("content") if isinstance(said, dict) else said
    return ENDS.get(str(said), QUICK_PAD if size.activation == "quick_gelu" else 0)


def ldm_names(conditioner: Conditioning | None) -> TextNames | None:
    """Whose names a text tower has in LDM's files: OpenAI's has QuickGELU, OpenCLIP's has not."""
    if not isinstance(conditioner, ClipConfig):
        return None
    return "openclip" if conditioner.encoder.activation == "gelu" else "clip"


def schedule(said: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a ScheduleConfig and of the prediction; ValueError for names that are not known here."""
    if said.get("trained_betas") is not None:
        raise ValueError(f"{path}: a schedule given as a list of betas is not known here yet")
    kind = _named(SCHEDULES, said.get("beta_schedule", "linear"), "beta_schedule", path)
    numbers: dict[str, Any] = {"kind": kind, "steps": said.get("num_train_timesteps", 1000)}
    if kind != "cosine":
        numbers |= {"start": said.get("beta_start", 0.0001), "end": said.get("beta_end", 0.02)}
    if said.get("rescale_betas_zero_snr"):
        numbers["terminal_zero"] = True
    prediction = _named(PREDICTIONS, said.get("prediction_type", "epsilon"), "prediction_type", path)
    return {"schedule": numbers, "prediction": prediction}


def _named(names: Mapping[str, Any], given: Any, key: str, path: Path) -> Any:
    if not isinstance(given, str) or given not in names:
        raise ValueError(f"{path}: {key} {given!r} is not known here; those that are: {', '.join(names)}")
    return names[given]


# What is written ---------------------------------------------------------------------------------------------


def written(config: ModelConfig, origin: Origin, scale: float) -> dict[str, dict[str, Any]]:
    """The JSON files of a pipeline of Stable Diffusion by their paths, but for the tokenizer's words."""
    pipelines = {"inpainting": "StableDiffusionInpaintPipeline", "picture": "StableDiffusionInstructPix2PixPipeline"}
    index = {
        "_class_name": pipelines.get(config.maps or "", "StableDiffusionPipeline"),
        "_diffusers_version": VERSION,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    assert isinstance(config.conditioner, ClipConfig)
    return {
        INDEX: index,
        "unet/config.json": _unet_said(config, origin),
        "vae/config.json": _first_stage_said(config, scale),
        "scheduler/scheduler_config.json": _scheduler_said(config),
        **_text_said(config.conditioner),
    }


def _unet_said(config: ModelConfig, origin: Origin) -> dict[str, Any]:
    size, first = config.unet, config.first_stage
    assert first is not None
    attends = [2**level in size.attention for level in range(len(size.mult))]
    heads = [size.heads_at(w).count for w in size.widths]
    said: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "block_out_channels": list(size.widths),
        "center_input_sample": False,
        "cross_attention_dim": size.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": size.channels + size.map_channels,
        "layers_per_block": size.blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": size.channels,
        "resnet_time_scale_shift": "scale_shift" if size.modulation == "scale_shift" else "default",
        "sample_size": config.resolution // first.factor,
        "transformer_layers_per_block": size.depth,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "upcast_attention": size.upcast,
        "use_linear_projection": origin.linear,
    }
    if size.cross_only:
        said["only_cross_attention"] = [2**level in size.cross_only for level in range(len(size.mult))]
    return said


def _first_stage_said(config: ModelConfig, scale: float) -> dict[str, Any]:
    first = config.first_stage
    assert first is not None
    attends = [2**level in first.attention for level in range(len(first.mult))]
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": [first.channels * m for m in first.mult],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "in_channels": first.image_channels,
        "latent_channels": first.latent_channels,
        "layers_per_block": first.blocks,
        "mid_block_add_attention": first.middle_attention,
        "norm_num_groups": 32,
        "out_channels": first.image_channels,
        "sample_size": config.resolution,
        "scaling_factor": scale,
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
    }


def _text_said(kind: ClipConfig) -> dict[str, dict[str, Any]]:
    size = kind.encoder
    pad = "!" if kind.pad == 0 else "<|endoftext|>"
    whole = kind.vocabulary > QUICK_PAD
    encoder = {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": QUICK_PAD - 1 if whole else 0,
        "eos_token_id": QUICK_PAD if whole else 2,
        "hidden_act": size.activation,
        "hidden_size": size.dim,
        "intermediate_size": 4 * size.dim,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": size.length,
        "model_type": "clip_text_model",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.depth,
        "pad_token_id": kind.pad if kind.vocabulary > kind.pad else 0,
        "projection_dim": size.dim,
        "vocab_size": kind.vocabulary,
    }
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer = {**tokens, "pad_token": pad, "model_max_length": size.length, "tokenizer_class": "CLIPTokenizer"}
    return {
        "text_encoder/config.json": encoder,
        "tokenizer/tokenizer_config.json": {**tokenizer, "add_prefix_space": False, "do_lower_case": True},
        "tokenizer/special_tokens_map.json": {**tokens, "pad_token": pad},
    }


def _scheduler_said(config: ModelConfig) -> dict[str, Any]:
    kinds = {ours: theirs for theirs, ours in SCHEDULES.items()}
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if config.schedule.kind not in kinds or config.prediction not in names:
        raise ValueError(
            f"diffusers has no scheduler for a schedule '{config.schedule.kind}' and a network that predicts"
            f" {config.prediction.value}"
        )
    defaults = (0.00085, 0.012) if config.schedule.kind == "scaled_linear" else (1e-4, 0.02)
    start, end = (given if given is not None else known for given, known in zip(
        (config.schedule.start, config.schedule.end), defaults, strict=True
    ))  # fmt: skip
    said: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "beta_end": end,
        "beta_schedule": kinds[config.schedule.kind],
        "beta_start": start,
        "clip_sample": False,
        "num_train_timesteps": config.schedule.steps or 1000,
        "prediction_type": names[config.prediction],
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
    }
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if config.schedule.terminal_zero else {}
    return {**said, **zero}
