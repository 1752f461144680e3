"""Dropout below the head: as the network brings it, or as it is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, vit_b_16

from tasks.engine import dropout
from tasks.errors import ThawlineError
from tasks.params import HeadParams
from tasks.problems.text_classification import encoders

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {"model_type": "bert", "vocab_size": 50, "intermediate_size": 64, **SMALL}


def test_an_encoder_learns_without_noise_and_its_head_as_before() -> None:
    torch.manual_seed(0)
    head = encoders.head(32, 2, HeadParams(dropout=0.5))
    model = encoders.Encoder(encoders.bare(CONFIG), head).train()
    ids = torch.randint(1, 50, (4, 9))
    below = nn.Sequential(model.embeddings)
    assert not torch.equal(below(ids), below(ids))
    dropout.set_share(model, encoders.HEAD, 0.0)
    model.head.eval()
    assert torch.equal(model(ids), model(ids))
    model.head.train()
    assert not torch.equal(model(ids), model(ids))
    dropout.set_share(model, encoders.HEAD, 0.3)
    assert not torch.equal(below(ids), below(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_a_network_without_dropout_is_refused_in_a_sentence() -> None:
    dropout.set_share(vit_b_16(), "heads.head", 0.1)
    with pytest.raises(ThawlineError, match=r"train.dropout: MobileNetV2 has no dropout below"):
        dropout.set_share(mobilenet_v2(), "classifier", 0.1)
