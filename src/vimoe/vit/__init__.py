"""Surgery on timm ViTs: find FFNs, upcycle, prune, cost, save and load."""
