"""Every generator beside simple samplers and scVI, judged on held-out cells: docs/results/generators.md."""
