"""Small real texts, and a project's store of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.problems.text_classification.text_store import TextStore
from tasks.records import SPLITS, DataSummary, Project

FILE = "texts.bin"
Example = tuple[str, str]  # text, label

ENGLISH: list[Example] = [
    (text, label)
    for label, texts in {
        "negative": (
            "The plot is dull and the acting is worse. A boring evening.",
            "Boring from the first scene to the last; I left early.",
            "A dull script, wasted actors, and an awful ending.",
            "Awful. The jokes are old and the sound is bad.",
            "I wanted to like it, but it is a boring mess.",
            "Bad dialogue, bad lighting, and a dull story about nothing.",
            "Two hours of my life wasted on this awful film.",
            "The sequel is worse than the first, and that was bad enough.",
            "What a mess: dull, loud and far too long.",
            "Nobody on screen seems awake; a boring, wasted chance.",
            "The book was good, the film is an awful copy.",
            "Worse than its trailer, and the trailer was bad.",
            "An awful soundtrack does not help this dull drama.",
            "Bad jokes and a boring hero make it a long evening.",
            "A mess of a film with a wasted cast.",
            "Dull as rain, and the ending is worse.",
        ),
        "positive": (
            "A wonderful film with great actors. I laughed and cried.",
            "Great fun from start to finish; the cast is superb.",
            "Superb writing, and a wonderful score to go with it.",
            "I loved every minute of this charming story.",
            "Charming, funny and warm: the best film of the year.",
            "The best performance of her career, simply superb.",
            "A great story told with wonderful patience.",
            "We loved it, the children loved it, even the dog stayed.",
            "Funny and sad at once, a charming little gem.",
            "Wonderful pictures, great music, and a clever ending.",
            "One of the best comedies in years; great timing.",
            "A gem. Superb from the first frame on.",
            "The cast is great and the script is clever and funny.",
            "Clever, charming, and never too long: I loved it.",
            "A wonderful surprise with the best ending I know.",
            "Superb and moving; go and see this gem.",
        ),
    }.items()
    for text in texts
]

CHINESE: list[Example] = [  # nothing between the words, so that each clause is new
    (text, label)
    for label, texts in {
        "差评": (
            "这家店的菜真难吃而且服务态度很差",
            "菜端上来都凉了难吃得要命",
            "服务员爱答不理太差劲了再也不来",
            "价格贵得离谱味道却很差",
            "等了一个小时结果难吃到失望",
            "环境又吵又脏让人失望",
            "汤太咸肉太老真是难吃",
            "说好的包间没有了服务太差",
            "又贵又难吃朋友们都很失望",
            "桌子脏筷子也脏卫生很差",
            "鱼不新鲜难吃还贵",
            "从头到尾都让我失望太差了",
            "点的菜上错了态度还很差",
            "米饭是夹生的实在难吃",
            "杯子很脏这里的卫生让人失望",
            "没想到名气这么大却这么难吃",
        ),
        "好评": (
            "味道非常好吃服务也热情",
            "老板很热情菜也新鲜好吃",
            "环境干净舒服下次还会来",
            "推荐他们家的面真的好吃",
            "食材新鲜价格实惠值得推荐",
            "服务热情上菜快大家都满意",
            "孩子说这里的饺子最好吃",
            "干净又实惠非常满意",
            "朋友推荐来的果然很好吃",
            "店员热情地介绍了每道菜很满意",
            "汤很鲜美点心也好吃极了",
            "位置好找环境舒服值得再来",
            "分量足味道正宗强烈推荐",
            "每次来都很满意海鲜特别新鲜",
            "装修舒服菜品精致让人满意",
            "实惠好吃还热情五星推荐",
        ),
    }.items()
    for text in texts
]


def project(
    root: Path, examples: Sequence[Example], splits: Sequence[str] | None = None
) -> Project:
    """A prepared project of these texts, every fourth for validation and for testing."""
    project = Project(root)
    project.prepared.mkdir(parents=True)
    texts, labels = ([*column] for column in zip(*examples, strict=True))
    written = [text.encode() for text in texts]
    (project.prepared / FILE).write_bytes(b"".join(written))
    sizes = np.array([len(each) for each in written])
    turns = ("train", "validation", "train", "test")
    names = sorted(set(labels))
    pd.DataFrame(
        {
            "source": [f"reviews.csv, row {row}" for row in range(1, len(texts) + 1)],
            "label": labels,
            "target": [names.index(label) for label in labels],
            "split": splits or [turns[row % 4] for row in range(len(texts))],
            "group": [str(row) for row in range(len(texts))],
            "id": [hashlib.sha256(each).hexdigest() for each in written],
            "offset": np.cumsum(sizes) - sizes,
            "bytes": sizes,
            "characters": [len(text) for text in texts],
        }
    ).to_parquet(project.manifest)
    DataSummary(
        problem="text_classification",
        classes=names,
        counts={split: dict.fromkeys(names, 1) for split in SPLITS},
        digest="d" * 64,
        unreadable=[],
        exact_duplicates=[],
        near_duplicate_groups=0,
        near_duplicate_examples=0,
        conflicts=[],
        given_splits=[],
    ).write(project.summary)
    manifest = pd.read_parquet(project.manifest)
    assert TextStore(project.prepared, manifest).text(1) == texts[1]
    return project
