"""What a model is trained for: its loss and its metric, behind one small interface."""
