"""Make sure that the packaged model is in the registry, in a process whose noise goes to a log.

The registry lies outside DVC, so this runs at the end of every `thawline run`, also when all
stages were unchanged; nothing is imported when the model is known to be there.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.process import die_with_parent, end_group, start_module, wait
from flows.project import environment
from tasks import files, params_file
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.records import Project

if TYPE_CHECKING:
    from tasks.register import Registration


def registered(
    project: Project, values: Params, console: Console, log: Path
) -> Registration | None:
    """The registration of the project's packaged model, made when missing.

    None when the project packages no model. Raises `ThawlineError` when the registry refuses.
    """
    if not (project.models / "model.json").is_file():
        return None
    from tasks.register import is_current

    known = is_current(project, values)
    if known is not None:
        return known
    with console.status("registering the model …"):
        return _in_process(project, log)


def require_unmoved(answer: Registration | None) -> None:
    """Raises `ThawlineError` when somebody else moved an alias: people and programs must notice.

    Call it when all else is done and told.
    """
    if answer is not None and answer.moved:
        told = "; ".join(answer.moved)
        raise ThawlineError(f"{told} (all else is done; this is said once, to look: thawline ui)")


def _in_process(project: Project, log: Path) -> Registration:
    from tasks.register import Registration

    answer_file = project.scratch / "flow/registration.json"
    answer_file.unlink(missing_ok=True)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        process = start_module(
            "flows.registration",
            str(answer_file),
            folder=project.root,
            environment=environment(project),
            log=output,
        )
        try:
            code = wait(process)
        except KeyboardInterrupt:
            end_group(process, grace=5)
            raise
    answer = files.read_json(answer_file) if answer_file.is_file() else {}
    if code == 0:
        return Registration(**answer)
    where = log.relative_to(project.root)
    problem = answer.get("error", f"registering the model failed (code {code})")
    raise ThawlineError(f"{problem}\n(log: {where})")


def main() -> int:
    """Register the model of the working folder's project; the answer goes to the file named."""
    die_with_parent()
    answer_file, project = Path(sys.argv[1]), Project(Path.cwd())
    from tasks.register import register

    try:
        answer = register(project, params_file.load(project.root))
    except ThawlineError as error:
        files.write_json(answer_file, {"error": str(error)})
        return 1
    files.write_json(answer_file, asdict(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
