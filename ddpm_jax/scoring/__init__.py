"""What a model scores: composes experiment and evaluation; results, tables, plots."""
