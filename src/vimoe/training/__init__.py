"""Recipes, the training loop, optimisers, run folders."""
