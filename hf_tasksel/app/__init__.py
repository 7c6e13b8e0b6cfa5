"""The page on which one ticks tasks and sees what training on them would give: `hf-tasksel app`."""
