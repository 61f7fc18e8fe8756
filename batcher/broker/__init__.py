"""The doorbell: a Redis-protocol broker, the leases kept in it, and the sweep that rings again."""
