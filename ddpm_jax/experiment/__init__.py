"""The door: a config goes in, typed objects come out."""
