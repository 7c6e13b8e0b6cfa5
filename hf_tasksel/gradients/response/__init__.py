"""Response estimates: where each task moves the adapter, and what the real model's dev loss is there."""
