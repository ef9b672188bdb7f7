"""Training: state and step, devices, checkpoints, records; loss functions come in."""
