"""Published checkpoints of U-Nets in, folders that diffusers reads out.

`published.open_published` reads the checkpoints of diffusers, of Song et al. (2021)
and of OpenAI into configs and parameters of ours; `diffusers.export` writes.
"""
