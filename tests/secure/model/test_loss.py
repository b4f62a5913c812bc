"""The loss of a language model: each text's mean over its own next tokens, padding left out."""

import pytest
import torch
import torch.nn.functional as F
from closeness import close
from small_jobs import make_job

from fedtree_secure.model.backbone import Backbone


def by_definition(logits, batch):
    """Mean negative log likelihood of each record's own next tokens, written out."""
    targets, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].float()
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none") * mask
    return nll.sum(1) / mask.sum(1).clamp(min=1)


@pytest.fixture
def backbone(tiny_llama):
    return Backbone(make_job(tiny_llama, task="causal-lm"))


def padded(backbone, lengths):
    """Texts of these lengths, padded with a token that has a real id."""
    generator = torch.Generator().manual_seed(3)
    shape = len(lengths), max(lengths)
    ids = torch.randint(5, len(backbone.tokenizer), shape, generator=generator)
    mask = (torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, backbone.pad), "attention_mask": mask}


def flat(gradients):
    return torch.cat([g.reshape(-1) for g in gradients if g is not None])


def test_loss_and_gradients_are_those_of_the_definition(backbone):
    batch = padded(backbone, [9, 4, 2, 1])
    backbone.model.double()  # so that the loss alone rounds: it is taken in float32
    weights = [p.requires_grad_(True) for p in backbone.model.parameters()]
    ours = backbone.loss(backbone.model, batch)
    wanted = by_definition(backbone.model(**batch).logits.float(), batch)
    assert close(ours, wanted, 1e-6)
    assert ours[3] == 0  # one token predicts nothing
    for record in range(3):
        found, expected = (
            torch.autograd.grad(losses[record], weights, retain_graph=True, allow_unused=True)
            for losses in (ours, wanted)
        )
        assert close(flat(found), flat(expected), 1e-6)


def test_what_stands_at_padding_does_not_count(backbone):
    batch = padded(backbone, [9, 4])
    first = backbone.loss(backbone.model, batch).detach()
    batch["input_ids"][1, 4:] = 17
    assert close(backbone.loss(backbone.model, batch).detach(), first, 1e-6)
    batch["input_ids"][1, 3] = 17  # the text's own last token does
    assert not close(backbone.loss(backbone.model, batch).detach(), first, 1e-3)


def test_perplexity_weighs_every_token_alike(backbone):
    from fedtree_secure.model.rows import ClientData, Table

    batch = padded(backbone, [9, 4, 2])
    texts = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
    rows = Table(tuple(tuple(row[:n]) for row, n in texts), None)
    found = backbone.evaluate(ClientData(rows, rows, (), labels_declared=True))
    with torch.no_grad():
        means = by_definition(backbone.model(**batch).logits, batch)
    tokens = torch.tensor([8, 3, 1])
    wanted = torch.exp((means * tokens).sum() / tokens.sum())
    assert found["name"] == "perplexity"
    assert close(torch.tensor(found["value"]), wanted, 1e-5)
