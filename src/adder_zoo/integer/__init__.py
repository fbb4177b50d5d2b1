"""Networks in whole numbers alone: from uint8 images to integer logits, for hardware and small processors."""
