"""MLflow: the runs, their curves and the registry. Nothing outside this package imports it.

Training opens a `Spool` with a `header`, starts a drainer, extends the spool at checkpoints and
ends it; it never waits for MLflow. `tasks.register` and `tasks.predict` use `store` and `registry`.
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
