"""Load tests of the engine, and `rightbatch bench serve`."""
