"""OmniVinci in JAX: train, evaluate and convert an omni-modal language model."""
