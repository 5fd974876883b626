"""How the file that a model came from named and shaped its tensors: what is needed for the way back."""

from sfumato.io.layouts.ldm import Order
from sfumato.io.shapes import TextNames
from sfumato.models.config import Closed


class Origin(Closed):
    """The choices that LDM's names leave open."""

    linear: bool = False  # the projections of the U-Net's transformers are matrices, not convolutions
    order: Order = "by_head"  # of Q, K and V in plain attention
    text: TextNames | None = None  # whose names the text encoder has
