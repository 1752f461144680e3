"""MLflow: the runs, their curves and the registry.

Training opens a `Spool` with a `header`, starts a drainer, extends the spool at checkpoints and
ends it; only then does it wait for MLflow, a short while, to note the id of its run. What else
uses MLflow comes through `store` and `registry`; outside this package, only `tasks.register` and
the packaged model's own file import it when they run.
"""

from tasks.tracking.drainer import DrainResult, drain, run_id, start_drainer
from tasks.tracking.runs import header
from tasks.tracking.spool import Header, Point, Spool

__all__ = [
    "DrainResult",
    "Header",
    "Point",
    "Spool",
    "drain",
    "header",
    "run_id",
    "start_drainer",
]
