"""Looking inside a running model: forward passes, hooks, gradients, views."""
