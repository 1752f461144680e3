"""The augment stage: the policy resolved and checked, and a picture of it, before anything trains.

Leaves in `outputs/augment`: `policy.json` (a `ViewPolicy`), where there is something to see
`preview.png` and `preview.json` (the names beside that picture), and `plain.json`, the part of the
policy that unaugmented views depend on, so that another augmentation embeds nothing anew.
"""

from __future__ import annotations

from tasks import problems
from tasks.params import Params
from tasks.records import Project


def run(project: Project, params: Params) -> None:
    """Write the policy and its preview.

    Raises `ParamsError` or `UnknownName` for a policy that cannot be used.
    """
    problem = problems.load(params.problem)
    policy = problem.policy(params.augment, params.seed)
    project.augment.mkdir(parents=True, exist_ok=True)
    problem.preview(project, policy, project.augment)
    policy.write(project.augment / "policy.json")
    policy.behind(0).write(project.augment / "plain.json")
