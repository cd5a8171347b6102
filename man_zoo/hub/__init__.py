"""From a training run to someone else's ``pretrained=True``: export, card, index, push."""
