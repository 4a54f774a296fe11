"""Our model in lm-eval."""
