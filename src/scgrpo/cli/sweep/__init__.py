"""`scgrpo sweep`: methods x seeds x learning rates x testbeds from one YAML. docs/sweeps.md describes it."""
