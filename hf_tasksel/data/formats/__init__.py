"""The shapes that rows of tasks come in: a class each, what they become, and how that becomes tokens."""
