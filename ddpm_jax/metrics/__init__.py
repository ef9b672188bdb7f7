"""What is computed of images: features by a network, statistics of them, scores.

An `Extractor` turns images into features, `Statistics` are what is kept of them, and
`METRICS` compares two sets. Nothing here knows of configs or of models.
"""
