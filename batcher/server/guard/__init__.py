"""Who may ask for how much, and how failures are answered."""
