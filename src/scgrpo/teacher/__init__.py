"""The conditioned pass: the teacher's prompts, weights and forward."""
