"""Ray: `serve` in replicas (`serve`), and the runs of a study on a cluster (`study`)."""

from __future__ import annotations

from rightbatch.integrations.ray._serve import deployment, serve_on_ray

__all__ = ["deployment", "serve_on_ray"]
