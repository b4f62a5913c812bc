"""The loss with one value for each record: the same numbers as torch's, from one pass over the
logits.
"""

import pytest
import torch
import torch.nn.functional as F
from closeness import close

from fedtree_dp import ConfigurationError, per_sequence_loss
from fedtree_dp.sgd import losses
from fedtree_dp.sgd.losses import IGNORED


def plain(logits, labels):
    """What the loss is, in torch's own words."""
    each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return each.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)


def example(records=3, positions=7, classes=11, dtype=torch.float64):
    torch.manual_seed(0)
    logits = torch.randn(records, positions, classes, dtype=dtype).mul(3).requires_grad_()
    labels = torch.randint(0, classes, (records, positions))
    labels[1, 2:5], labels[2] = IGNORED, IGNORED
    return logits, labels


def with_gradient(loss, logits, weights):
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits, weights)
    return value.detach(), gradient


@pytest.mark.parametrize(
    "block", [1, 25, 1 << 20]
)  # one position, two positions, whole records at a time
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -2.0, 3.0]])
def test_values_and_gradients_are_torchs(monkeypatch, block, weights):
    monkeypatch.setitem(losses.BLOCK, "cpu", block)
    logits, labels = example()
    weights = torch.tensor(weights, dtype=torch.float64)
    ours = with_gradient(lambda x: per_sequence_loss(x, labels), logits, weights)
    theirs = with_gradient(lambda x: plain(x, labels), logits, weights)
    torch.testing.assert_close(ours, theirs)
    assert ours[0][2] == 0


def test_causal_is_the_shift_by_one():
    logits, labels = example()
    ones = torch.ones(3, dtype=torch.float64)
    ours = with_gradient(lambda x: per_sequence_loss(x, labels, causal=True), logits, ones)
    theirs = with_gradient(lambda x: plain(x[:, :-1], labels[:, 1:]), logits, ones)
    torch.testing.assert_close(ours, theirs)
    assert not ours[1][:, -1].any()


def test_a_view_of_the_logits_does():
    logits, labels = example()
    ones = torch.ones(3, dtype=torch.float64)
    ours = with_gradient(lambda x: per_sequence_loss(x[:, :-1], labels[:, 1:]), logits, ones)
    torch.testing.assert_close(
        ours, with_gradient(lambda x: plain(x[:, :-1], labels[:, 1:]), logits, ones)
    )


def test_half_precision_is_summed_in_single_and_answered_in_half():
    logits, labels = example(dtype=torch.bfloat16)
    value, gradient = with_gradient(lambda x: per_sequence_loss(x, labels), logits, torch.ones(3))
    wide = logits.detach().float().requires_grad_()
    expected = with_gradient(lambda x: plain(x, labels), wide, torch.ones(3))
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert close(value, expected[0], 1e-6)
    assert close(gradient.float(), expected[1], 2**-8)  # half a step of bfloat16, and its sum


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]]], requires_grad=True)
    value, gradient = with_gradient(
        lambda x: per_sequence_loss(x, torch.tensor([[1, 1]])), logits, torch.ones(1)
    )
    assert value.item() == pytest.approx(1e4)
    torch.testing.assert_close(gradient[0], torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]))


def test_nan_stays_in_its_record_and_is_nothing_where_it_is_ignored():
    logits, labels = example()
    with torch.no_grad():
        logits[0, 1] = logits[1, 3] = float("nan")  # the second is at an ignored position
    value, gradient = with_gradient(
        lambda x: per_sequence_loss(x, labels), logits, torch.ones(3, dtype=torch.float64)
    )
    assert value.isnan().tolist() == [True, False, False]
    assert gradient.isnan().any(dim=2).nonzero().tolist() == [[0, 1]]


def test_without_gradients_none_is_made():
    logits, labels = example()
    assert not per_sequence_loss(logits.detach(), labels).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(per_sequence_loss(logits, labels), plain(logits, labels))


@pytest.mark.parametrize(
    ("logits", "labels", "causal"),
    [
        ((3, 7, 11), (3,), False),
        ((3, 7, 11), (3, 6), False),
        ((3, 11), (4,), False),
        ((3,), (), False),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, labels, causal):
    with pytest.raises(ConfigurationError, match="give \\(records, "):
        per_sequence_loss(
            torch.zeros(logits), torch.zeros(labels, dtype=torch.int64), causal=causal
        )


def test_causal_needs_positions():
    with pytest.raises(ConfigurationError, match="causal needs labels"):
        per_sequence_loss(torch.zeros(3, 11), torch.zeros(3, dtype=torch.int64), causal=True)


def test_a_sequence_depends_on_its_own_tokens_only():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[1, 2:] = -100
    labels[2] = -100
    all_three = per_sequence_loss(logits, labels)
    for i in range(3):
        assert close(per_sequence_loss(logits[i : i + 1], labels[i : i + 1])[0], all_three[i], 1e-6)
    assert all_three[2] == 0
    assert per_sequence_loss(logits.bfloat16(), labels).dtype == torch.float32
