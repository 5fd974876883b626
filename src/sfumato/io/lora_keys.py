"""What a key in a LoRA's file says, in each of the styles that programs write.

kohya       lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .alpha
PEFT        base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight, or .lora_A.default.weight
diffusers   unet.down_blocks.0.attentions.0.proj_in.lora_A.weight, or .lora.down.weight
its old     unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight
"""

import re
from typing import Literal, NamedTuple

Part = Literal["unet", "text"]
Role = Literal["down", "up", "alpha"]

OTHERS = {
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "lora_mid": "a LoCon with a core between its two matrices",
    "lora_embedding_": "a LoRA of an embedding",
    "oft_": "an OFT",
    "boft_": "an OFT",
    "ia3_": "an (IA)^3",
    "glora_": "a GLoRA",
    "diff": "a whole difference of weights",
    "diff_b": "a whole difference of weights",
}
"""Parts of keys, or with an underscore at their end how they begin, of what is like a LoRA and is none."""

STRANGERS = {
    "lora_te1_": "SDXL",
    "lora_te2_": "SDXL",
    "lora_te3_": "Stable Diffusion 3",
    "text_encoder_2.": "SDXL",
    "text_encoder_3.": "Stable Diffusion 3",
    "lora_prior_": "Stable Cascade",
    "lora_transformer_": "a diffusion transformer",
    "transformer.": "a diffusion transformer",
    "model.diffusion_model.": None,
    "first_stage_model.": None,
    "cond_stage_model.": None,
}
"""How keys for other models begin, and those of whole models."""

PREFIXES: dict[str, Part | None] = {
    "lora_unet_": "unet",
    "lora_te_": "text",
    "unet.": "unet",
    "text_encoder.": "text",
    "diffusion_model.": "unet",
    "base_model.model.": None,
}
LONG = 160  # characters of a key that an error says
PEFT = "base_model.model."
TEXT = ("text_model_", "encoder_layers_")  # how the paths of a text tower begin, which newer libraries shorten

_OLD = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_OLD_TEXT = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_TAIL = re.compile(
    r"(?P<stem>.+?)(?:"
    r"\.lora_(?P<kohya>down|up)\.weight"
    r"|\.lora_(?P<peft>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
    r"|\.lora(?:_linear_layer)?\.(?P<plain>down|up)\.weight"
    r"|(?:\.processor)?\.to_(?P<to>q|k|v|out)_lora\.(?P<old>down|up)\.weight"
    r"|\.alpha)",
    re.DOTALL,
)


class Key(NamedTuple):
    """What a key says."""

    part: Part
    path: str  # of the layer, as it is written but without what says which part it is of
    role: Role
    alone: bool  # whether it is as PEFT alone writes it, with its scale in a file beside it

    @property
    def layer(self) -> str:
        """The path with underscores, which all styles share."""
        flat = self.path.replace(".", "_")
        return f"text_model_{flat}" if self.part == "text" and not flat.startswith("text_model_") else flat


def parsed(key: str) -> Key:
    """What a key says; ValueError, worded to go after the name of the file, if it is none of a plain LoRA."""
    for piece in key.split(".")[1:]:
        for sign, what in OTHERS.items():
            if piece == sign or (sign[-1] == "_" and piece.startswith(sign)):
                raise ValueError(f"is {what} ({named(key)}), which is not read; plain LoRA and LoCon are")
    for prefix, model in STRANGERS.items():
        if key.startswith(prefix):
            what = f"a LoRA for {model}" if model else "a whole model, or a part of one, and no LoRA"
            raise ValueError(f"is {what} ({named(key)}); give one for Stable Diffusion 1 or 2")
    found = _TAIL.fullmatch(key)
    if found is None:
        raise ValueError(f"has the key {named(key)}, which is none of a LoRA; its keys end in .lora_down.weight or so")
    part, path = _placed(found["stem"])
    if found["to"]:
        path += "." + (_OLD_TEXT if path.endswith("self_attn") else _OLD)[found["to"]]
    said = found["kohya"] or found["plain"] or found["old"] or {"A": "down", "B": "up"}.get(found["peft"], "alpha")
    role: Role = "down" if said == "down" else "up" if said == "up" else "alpha"
    return Key(part, path, role, key.startswith(PEFT))


def named(key: str) -> str:
    """A key from a file, fit for one line, and as long as keys are."""
    return repr(key if len(key) <= LONG else key[:LONG] + "...")


def _placed(stem: str) -> tuple[Part, str]:
    """The part of the model that a path is of, and the rest of the path."""
    part: Part | None = None
    for prefix in (PEFT, *PREFIXES):
        if part is None and stem.startswith(prefix):
            part, stem = PREFIXES[prefix], stem.removeprefix(prefix)
    text = stem.replace(".", "_").startswith(TEXT)
    return part or ("text" if text else "unet"), stem
