"""What reports and cards say of texts and of the networks that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks import packaged
from tasks.problems import Views
from tasks.records import ViewPolicy

READ = {"head": "the beginning is read", "head_and_tail": "the beginning and the end are read"}


def in_words(policy: ViewPolicy) -> Views:
    """How many views of how many tokens training saw, and what is read of longer texts."""
    tokens, facts = policy.shape["max_tokens"], [("Longer texts", READ[policy.shape["truncate"]])]
    if not policy.transforms:
        return Views(f"the plain text, up to {tokens} tokens of it.", tuple(facts))
    many = "view" if policy.views == 1 else "views"
    for step in policy.transforms:
        if (drop := step["arguments"].get("drop")) is not None:
            facts.append(("Hidden in a view", f"{drop:.0%} of the tokens"))
    sentence = f"{policy.views} fixed {many} of each text, up to {tokens} tokens of it."
    return Views(sentence, tuple(facts))


def usage(record: Mapping[str, Any]) -> tuple[str, str]:
    """A text; and loading the weights with transformers, whose names they have. A head of or on
    several layers has no short way, nor has a text that loses its middle."""
    cut = record["inputs"]["truncate"] != "head"
    long = cut or record["head"]["hidden"] or "reading" in record
    plain = PLAIN.replace(*OF_ONE_LABEL) if packaged.several(record) else PLAIN
    return '["a text of your own"]', "" if long else plain


PLAIN = """\
Or with transformers alone:

```python
import json

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel

record = json.load(open("models/model.json", encoding="utf-8"))
tokenizer = Tokenizer.from_file("models/tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation(record["inputs"]["max_tokens"])
encoder = AutoModel.from_config(AutoConfig.for_model(**record["network"]["config"])).eval()
weights = load_file("models/model.safetensors")
encoder.load_state_dict(weights, strict=False)  # all but the head, and a pooler that nobody asks

ids = torch.tensor([tokenizer.encode("a text of your own").ids])
with torch.inference_mode():
    mean = encoder(ids).last_hidden_state.mean(1)
    logits = torch.nn.functional.linear(mean, weights["head.1.weight"], weights["head.1.bias"])
probabilities = (logits / record["temperature"]).softmax(1)[0]
print(record["classes"][probabilities.argmax()], probabilities.max().item())
```

"""

OF_ONE_LABEL = (
    """\
probabilities = (logits / record["temperature"]).softmax(1)[0]
print(record["classes"][probabilities.argmax()], probabilities.max().item())
""",
    """\
probabilities = (logits / record["temperature"]).sigmoid()[0]
print([name for name, p in zip(record["classes"], probabilities) if p > 0.5])
""",
)  # and its place where there may be several
