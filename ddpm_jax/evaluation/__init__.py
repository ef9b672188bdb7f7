"""What a model scores: composes experiment and metrics; results, tables, plots."""
