"""Measures of generated images: what they compare, and how images become that.

`resize` brings images to the size of the Inception network as published code does,
`inception` is that network.
"""
