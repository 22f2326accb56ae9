"""Who trains which stage: schedule, cost, search and the baselines beside it."""
