"""Rules that pick or average real cells, class by class: the baselines to beat."""
