"""Speed and memory, as ratios to a floor measured in the same process. `python -m benchmarks [--device cuda] [--model NAME]`."""
