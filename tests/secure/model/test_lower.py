"""Where a model can begin above its lower layers, and where it is left whole."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedtree_secure.model.lower import lower_layers

HIDDEN, KNOWN, LENGTH = 8, 50, 6


class Layer(nn.Module):
    """Adds something of all earlier tokens; answers with a tuple where asked to."""

    def __init__(self, *, in_tuple: bool) -> None:
        super().__init__()
        self.inner, self.in_tuple = nn.Linear(HIDDEN, HIDDEN), in_tuple

    def forward(self, hidden_states, mask=None):
        found = hidden_states + self.inner(hidden_states * mask[..., None]).cumsum(1)
        return (found, None) if self.in_tuple else found


class Model(nn.Module):
    """Four layers and a head; what the first layer gave may reach the head beside them."""

    def __init__(self, *, in_tuple=False, around=False, twice=False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(KNOWN, HIDDEN), nn.Linear(HIDDEN, 2)
        self.layers = nn.ModuleList(Layer(in_tuple=in_tuple) for _ in range(4))
        self.around, self.twice = around, twice

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask):
        states, seen = self.words(input_ids), []
        for layer in [self.layers[0], *self.layers] if self.twice else self.layers:
            found = layer(states, mask=attention_mask)
            states = found[0] if isinstance(found, tuple) else found
            seen.append(states)
        return SimpleNamespace(logits=self.head(states + seen[0] if self.around else states))


def records():
    ids = torch.randint(KNOWN, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("in_tuple", [False, True])
def test_a_model_that_is_given_its_lower_layers_states_computes_the_same(in_tuple):
    model, batch = Model(in_tuple=in_tuple).eval(), records()
    lower = lower_layers(model, "layers.2.inner", LENGTH)
    assert len(lower) == 2
    whole, states = model(**batch).logits, lower.states(batch)
    ran = []
    for layer in model.layers:
        layer.inner.register_forward_hook(lambda *_: ran.append(1))
    with lower.left_out(states):
        assert torch.equal(model(**batch).logits, whole)
    assert len(ran) == 2
    assert torch.equal(model(**batch).logits, whole)
    assert len(ran) == 6


def test_a_model_that_hands_more_from_layer_to_layer_is_left_whole():
    assert lower_layers(Model(around=True).eval(), "layers.2.inner", LENGTH) is None
    assert lower_layers(Model(twice=True).eval(), "layers.2.inner", LENGTH) is None


def test_nothing_lies_below_the_first_layer():
    assert lower_layers(Model().eval(), "layers.0.inner", LENGTH) is None
    assert lower_layers(Model().eval(), "head", LENGTH) is None
