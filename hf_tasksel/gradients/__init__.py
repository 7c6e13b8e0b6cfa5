"""Per-sample gradients of LoRA parameters: computed in one pass, projected in the hooks, kept in an Arrow store."""
