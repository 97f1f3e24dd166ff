"""Ray: serving in replicas, and the runs of a study on a cluster.

_serve   the replica, `deployment`, `serve --on ray`   _study       a cluster as a place for runs
_task    one run as a Ray task                         _resources   CPUs, GPU shares and memory
"""

from __future__ import annotations

from rightbatch.integrations.ray._serve import deployment, serve_on_ray

__all__ = ["deployment", "serve_on_ray"]
