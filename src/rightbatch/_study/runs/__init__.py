"""One run of a study: trained in a process of its own, and measured while it trains."""
