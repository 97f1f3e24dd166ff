"""The page of all measurements, `docs/benchmarks.md`, made of `benchmarks/results/*.json`.

`document` puts the page together, `goals` and `provenance` are used by all sections; each other
module is the section of one verb: its tables, which are those that its benchmark prints, and what
they say about the goals. Every figure is computed here; only explanations and goals are written.
"""
