"""What reports and cards say of texts and of the networks that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    """A text; there is no short way to load the network without Thawline, whose layers are cut
    other than those of its library."""
    return '["a text of your own"]', ""
