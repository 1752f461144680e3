"""The augment stage: the policy resolved and checked, and a picture of it, before anything trains.

Leaves `policy.json` (a `ViewPolicy`) and `preview.png` in `outputs/augment`.
"""

from __future__ import annotations

from tasks import plugins, problems
from tasks.params import Params
from tasks.records import Project


def run(project: Project, params: Params) -> None:
    """Write the policy and its preview.

    Raises `ParamsError` or `UnknownName` for a policy that cannot be used.
    """
    problem = plugins.load(problems, params.problem)
    policy = problem.policy(params.augment, params.seed)
    problem.preview(project, policy, project.augment / "preview.png")
    policy.write(project.augment / "policy.json")
