"""Training: recipe, trainer, validation, log and plot."""
