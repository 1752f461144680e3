"""The linear heads on every frozen candidate that a model is judged beside."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from tasks import augment, embed, freeze, linear_probes, select
from tasks.params import Params
from tasks.records import Project
from tests.tasks import drawn_project

BACKBONES = ["tf_efficientnet_lite0", "mobilenet_v2"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    torch.set_num_threads(1)
    made = drawn_project.make(tmp_path_factory.mktemp("probes"))
    augment.run(made, settings())
    for name in BACKBONES:
        embed.run(made, settings(), name)
    select.run(made, settings())
    freeze.run(made, settings())
    return made


def settings() -> Params:
    chosen = {"backbone": "mobilenet_v2"}
    size = {"image_size": 32, "views": 2}
    return drawn_project.params(augment=size, embed={"backbones": BACKBONES}, select=chosen)


def test_every_candidate_has_one_the_chosen_first(project: Project) -> None:
    manifest = pd.read_parquet(project.manifest)
    chosen, other = linear_probes.run(project, settings(), manifest)
    assert (chosen.name, other.name) == ("linear_probe", "linear_probe_tf_efficientnet_lite0")
    assert other.title == "A linear probe on the frozen candidate tf_efficientnet_lite0"
    targets = manifest["target"][manifest["split"] == "test"].to_numpy()
    for probe in (chosen, other):
        assert (probe.predicted == targets).mean() > 0.5  # of three drawn shapes


@pytest.mark.parametrize("name", BACKBONES)
def test_the_features_are_those_of_embed(project: Project, name: str) -> None:
    kept, rows = embed.deepest(project, name)
    found = linear_probes._features(project, settings(), name, rows)
    np.testing.assert_array_equal(found, kept)
