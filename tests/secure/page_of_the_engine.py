"""What docs/engine.md takes for granted: a model with an adapter, an optimizer, a loss, records."""

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification

from fedtree_dp import per_sequence_loss

torch.manual_seed(0)
_config = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)
model = peft.get_peft_model(
    BertForSequenceClassification(_config),
    peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"]),
)
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
records = [{"input_ids": torch.randint(50, (8,)), "labels": torch.tensor(i % 2)} for i in range(40)]
steps = 2


def loss(model, batch):
    """One value for each record."""
    return per_sequence_loss(model(input_ids=batch["input_ids"]).logits, batch["labels"])


def collate(drawn):
    """Put drawn records into one batch."""
    return (
        {n: torch.stack([records[i][n] for i in drawn]) for n in records[0]} if len(drawn) else []
    )


public_dummies = {"input_ids": torch.randint(50, (4, 8)), "labels": torch.tensor([0, 1, 0, 1])}
