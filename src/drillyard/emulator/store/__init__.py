"""Pure: all replicas of one member, and what their logs do. `store` is the place to start reading."""
