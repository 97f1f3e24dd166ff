"""One run of a study: trained in a worker process, and measured while it trains."""
