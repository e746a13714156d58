"""Programs of others, unmodified, against clusters of ours: what they were made to do, and whether they could."""
