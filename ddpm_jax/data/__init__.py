"""Images on the host: where they come from, in which order, and how they look."""
