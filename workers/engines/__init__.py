"""What completes prompts, and what is measured and known of it."""
