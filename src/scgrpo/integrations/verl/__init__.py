"""SC-GRPO on verl: a plug-in that verl loads by itself (docs/clusters.md)."""
