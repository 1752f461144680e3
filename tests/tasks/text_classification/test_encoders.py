"""Encoders of transformers as chains of layers: the same numbers, whatever the padding."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import AutoModel

from tasks.engine import pooling
from tasks.engine.objective import Objective
from tasks.engine.split import HEAD, chain
from tasks.errors import ThawlineError
from tasks.params import HeadParams, TrainParams
from tasks.problems.text_classification import encoders
from tasks.problems.text_classification.encoders import Encoder

torch.set_num_threads(1)
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
DISTIL = {"vocab_size": 60, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    name: {**(DISTIL if name == "distilbert" else SMALL), "model_type": name}
    for name in encoders.LAYERS
}


def made(name: str, classes: int = 3) -> Encoder:
    torch.manual_seed(0)
    inner = encoders.bare({"intermediate_size": 32, "pad_token_id": 1, **CONFIGS[name]})
    return Encoder(inner, encoders.head(16, classes, HeadParams())).eval()


def ids(encoder: Encoder) -> Tensor:
    """Two texts, of seven and four tokens."""
    found = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    found[1, 4:] = encoder.padding
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_its_layers_give_what_transformers_gives(name: str) -> None:
    encoder = made(name)
    given = ids(encoder)
    cut = chain(encoder, HEAD, given)
    assert [layer.name for layer in cut.layers] == [
        "embeddings",
        *(f"{encoders.LAYERS[name]}.{i}" for i in range(3)),
        HEAD,
    ]
    inner = AutoModel.from_config(deepcopy(encoder.config), attn_implementation="eager").eval()
    lost = inner.load_state_dict(encoder.state_dict(), strict=False)
    assert all(key.startswith("pooler.") for key in lost.missing_keys)
    inside = given != encoder.padding
    with torch.no_grad():
        hidden = inner(input_ids=given, attention_mask=inside.long()).last_hidden_state
        wanted = torch.stack([x[y].mean(0) for x, y in zip(hidden, inside, strict=True)])
        top = cut.part(0, 4)(given)
        torch.testing.assert_close(top, wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder(given), encoder.head(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_more_padding_changes_nothing(name: str) -> None:
    encoder = made(name)
    given = ids(encoder)
    longer = torch.cat([given, torch.full((2, 5), encoder.padding)], 1)
    cut = chain(encoder, HEAD, given)
    pool = pooling.of(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(longer), encoder(given), atol=1e-5, rtol=1e-4)
        lower, same = (pool(cut.part(0, 2)(x)) for x in (longer, given))
    torch.testing.assert_close(lower, same, atol=1e-5, rtol=1e-4)


def test_padding_is_zero_at_every_line_so_that_kept_views_can_leave_it_out() -> None:
    encoder = made("bert")
    values = chain(encoder, HEAD, ids(encoder)).part(0, 3)(ids(encoder))
    assert values.shape == (2, 7, 17)
    assert not values[1, 4:].any() and values[0, :, -1].all()


def test_of_two_texts_that_are_mixed_the_longer_counts() -> None:
    encoder = made("bert")
    values = chain(encoder, HEAD, ids(encoder)).part(0, 2)(ids(encoder))
    settings = TrainParams.model_validate({"mix": "mixup", "mix_alpha": 1.0})
    torch.manual_seed(1)
    mixed, _, _ = Objective(settings, torch.ones(3)).mixed(values, torch.tensor([0, 1]))
    assert encoders.present(mixed)[0].all()
    logits = chain(encoder, HEAD, ids(encoder)).part(2)(mixed)
    assert torch.isfinite(logits).all()


def test_every_layer_learns_and_is_as_random_as_its_library_makes_it() -> None:
    encoder = made("distilbert").train()
    given = ids(encoder)
    nn.functional.cross_entropy(encoder(given), torch.tensor([0, 2])).backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert not torch.equal(encoder(given), encoder(given))  # dropout


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_makes_the_same_network_again(name: str) -> None:
    encoder = made(name)
    again = Encoder(encoders.bare(encoders.configuration(encoder)), encoder.head)
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(ids(encoder)), encoder(ids(encoder)))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_longest_input_is_known(name: str) -> None:
    encoder = made(name)
    behind = name in (
        "camembert",
        "roberta",
        "xlm-roberta",
    )  # positions begin behind the padding id
    assert encoder.most_tokens == 512 - 2 * behind
    encoder(torch.full((1, encoder.most_tokens), 7))
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.full((1, encoder.most_tokens + 1), 7))


def test_padding_is_what_the_vocabulary_says() -> None:
    """A BERT with the vocabulary of XLM-R, such as multilingual MiniLMs: 0 begins every text."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}
    vocabulary = Tokenizer(WordLevel(words, unk_token="<unk>")).to_str()
    torch.manual_seed(0)
    inner = encoders.bare({"intermediate_size": 32, "pad_token_id": 0, **CONFIGS["bert"]})
    encoder = Encoder(inner, nn.Identity(), vocabulary).eval()
    assert encoder.padding == 1
    short, filled = torch.tensor([[0, 4, 4, 2]]), torch.tensor([[0, 4, 4, 2, 1, 1]])
    plain = AutoModel.from_config(deepcopy(encoder.config), attn_implementation="eager").eval()
    plain.load_state_dict(encoder.state_dict(), strict=False)
    with torch.no_grad():
        wanted = plain(input_ids=short).last_hidden_state.mean(1)
        for given in (short, filled):
            torch.testing.assert_close(encoder(given), wanted, atol=1e-5, rtol=1e-5)


def test_an_encoder_of_another_kind_is_refused() -> None:
    class Other(nn.Module):
        config = type("Config", (), {"model_type": "gpt2"})()

    with pytest.raises(ThawlineError, match="type gpt2 is not known; choose one of: bert, "):
        Encoder(Other(), nn.Identity())
