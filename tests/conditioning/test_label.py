"""Labels as tokens or as rows of the network's own table."""

from __future__ import annotations

import pytest
import torch

from sfumato.cond import Cond
from sfumato.conditioning.label import Labels, TableRow
from sfumato.nets.unet import UNet, UNetSize


def test_a_label_is_one_token_and_one_of_them_may_be_none() -> None:
    labels = Labels(5, 8, null=4)
    cond = labels(labels.collate([{"label": 2}, {"label": 4}]))
    assert cond.tokens is not None
    assert torch.equal(cond.tokens[0, 0], labels.table.weight[2])
    null = labels.null(1).tokens
    assert null is not None
    assert torch.equal(null[0], cond.tokens[1])
    with pytest.raises(ValueError, match="never trained without a label, so guidance must be 1"):
        Labels(5, 8).null(1)


@pytest.mark.parametrize("label", [-1, 5, 10**9])
@pytest.mark.parametrize("kind", [Labels(5, 8), TableRow(5)])
def test_a_label_out_of_range_is_refused(kind: Labels | TableRow, label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} is out of range; this model has labels 0 to 4"):
        kind.collate([{"label": label}])


def test_a_row_of_the_table_steers_its_own_sample() -> None:
    torch.manual_seed(0)
    net = UNet(UNetSize(channels=3, width=32, mult=(1, 2), blocks=1, attention=(), attends="plain", classes=5))
    net.requires_grad_(False)
    for p in net.parameters():
        p.add_(torch.randn(p.shape) * 0.05)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([5.0, 50.0])
    one, other = net(x, t, label=torch.tensor([1, 2])), net(x, t, label=torch.tensor([1, 4]))
    assert torch.equal(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-3


def test_labels_join_with_tokens_and_not_with_labels() -> None:
    label = TableRow(5)(TableRow(5).collate([{"label": 3}]))
    both = Cond(tokens=torch.zeros(1, 2, 4)) | label
    assert both.label is not None
    assert both.label.tolist() == [3]
    with pytest.raises(ValueError, match="both conditions have a label"):
        _ = label | label
    half = both.to("cpu", torch.bfloat16)
    assert half.label is not None
    assert half.label.dtype == torch.int64
