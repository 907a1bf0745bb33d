"""One run's training: `SegTrainer`, its arguments, checkpoints and callbacks."""
