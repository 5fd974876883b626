"""Single files of LDM, Stable Diffusion, ADM and DDPM: every tensor in its place, both ways."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.io.layouts import ddpm, ldm
from sfumato.io.layouts.rules import Layout, Rule, prefixed
from sfumato.io.origin import Origin
from sfumato.io.recognise import COND, FIRST_STAGE, UNET, Recognised, ema_name
from sfumato.io.stored import Stored
from sfumato.models.config import (
    BertConfig,
    BoxesConfig,
    ClipConfig,
    LabelsConfig,
    LayoutConfig,
    ModelConfig,
    SegmentationConfig,
    WordsConfig,
)
from sfumato.models.latent_diffusion import LatentDiffusion

READ = ("scale_factor", "betas", "v_pred", "ztsnr")
"""Keys beside the networks' that say something; see `recognise`."""
PASSED = (
    # the schedule, which is computed
    r"(betas|alphas_cumprod(_prev)?|(sqrt_|log_)(one_minus_|recip_|recipm1_)?alphas_cumprod|posterior_.*)",
    r"(logvar|lvlb_weights|scale_factor|v_pred|ztsnr|edm_.*)",
    r"model_ema\..*",
    r"first_stage_model\.(loss|model_ema|discriminator)\..*",
    r"cond_stage_model\..*\.position_ids",
    # OpenCLIP's last layer, which Stable Diffusion 2 does not use, and what is for pictures
    r"cond_stage_model\.model\.(text_projection|logit_scale|attn_mask|visual\..*|transformer\.resblocks\.23\..*)",
    r"cond_stage_model\.(transformer\.)?(text_projection(\.weight)?|logit_scale)",
    # networks beside the model, which need other inputs than prompts
    r"(depth_model|embedder|noise_augmentor|low_res_model|safety_checker)\..*",
)


def layout(
    model: LatentDiffusion, origin: Origin, *, prefix: str = UNET, text_at: str = "", ema: bool = False
) -> Layout:
    """The rules for a model, hollow or not, in a single file. With `ema` the U-Net is the average."""
    config = model.config
    net = model.net
    if config.unet.lineage == "ddpm":
        rules = prefixed(ddpm.unet(net), "denoiser.net.", prefix)
    else:
        rules = prefixed(ldm.unet(net, linear=origin.linear, order=origin.order), "denoiser.net.", prefix)
    if ema:
        rules = [replace(rule, theirs=tuple(ema_name(name) for name in rule.theirs)) for rule in rules]
    rules += _first_stage(model) + _conditioner(model, origin, text_at)
    beside = (r"model\.diffusion_model\..*",) if ema else ()  # the weights that were averaged
    if config.conditioner is None and config.maps:
        beside = (*beside, r"cond_stage_model\..*")  # LDM's inpainting has its first stage there again
    return Layout(tuple(rules), (*PASSED, *beside))


def _first_stage(model: LatentDiffusion) -> list[Rule]:
    size = model.config.first_stage
    if size is None:
        return []
    rules = ldm.autoencoder(model.autoencoder, levels=len(size.mult))
    return prefixed(rules, "first_stage.net.", FIRST_STAGE)


def _conditioner(model: LatentDiffusion, origin: Origin, text_at: str) -> list[Rule]:
    kind = model.config.conditioner
    if isinstance(kind, LabelsConfig):
        return [Rule(("conditioner.table.weight",), (f"{COND}embedding.weight",))]
    if isinstance(kind, SegmentationConfig):
        return [Rule(("conditioner.project.weight",), (f"{COND}channel_mapper.weight",))]
    if not isinstance(kind, ClipConfig | BertConfig | LayoutConfig):
        return []
    text = "bert" if isinstance(kind, BertConfig | LayoutConfig) else origin.text or "clip"
    names = {"clip": ldm.clip, "openclip": ldm.openclip, "bert": ldm.bert}[text]
    at = {"clip": "transformer.text_model.", "openclip": "model.", "bert": "transformer."}[text]
    return prefixed(names(model.text), "conditioner.encoder.", text_at or COND + at)


def read(
    stored: Stored, found: Recognised, model: LatentDiffusion, *, ema: bool, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors for a hollow model, as windows on the file where `dtype` allows; and the keys that were passed over.

    ValueError, naming a key, if one is missing, fits nothing or has another shape.
    """
    prefix = UNET if found.prefixed else ""
    rules = layout(model, found.origin, prefix=prefix, text_at=found.text_at, ema=ema)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    passed = [name for name in rules.account(stored.entries, source=stored.path) if name not in READ]
    out = rules.read(stored, shapes, source=stored.path, dtype=dtype)
    return out | statistics(model.config, found.scale), passed


def statistics(config: ModelConfig, scale: float) -> dict[str, Tensor]:
    """The buffers of the first stage: no mean, and the deviation that LDM's factor stands for."""
    first = config.first_stage
    if first is None:
        return {}
    std = torch.tensor(1 / scale, dtype=torch.float64)
    return {"first_stage.std": std, "first_stage.mean": torch.zeros(1, first.latent_channels, 1, 1)}


def write(tensors: Mapping[str, Tensor], model: LatentDiffusion, origin: Origin) -> dict[str, Tensor]:
    """LDM's tensors, from ours; the latents' factor is among them. ValueError if LDM's files have no room for one."""
    config, first = model.config, model.config.first_stage
    mean = tensors.get("first_stage.mean")
    for wrong, what in (
        (first is not None and not first.published, "an autoencoder with shortcuts or patches"),
        (isinstance(config.conditioner, WordsConfig), "the vocabulary of this model"),
        (isinstance(config.conditioner, BoxesConfig), "boxes that are no sequence of numbers"),
        (mean is not None and bool(mean.any()), "the mean of its latents"),
        (config.schedule.kind in ("flow", "geometric"), f"a schedule '{config.schedule.kind}'"),
    ):
        if wrong:
            raise ValueError(f"LDM's files have no room for {what}")
    out = layout(model, origin).write(tensors)
    if config.schedule.terminal_zero:
        out["ztsnr"] = torch.ones(1)
    if first is not None:
        out["scale_factor"] = (1 / tensors["first_stage.std"].double()).float()
    return out
