"""The emulated TiKV server around the pure `store`: its disk, its way to PD, its two listeners."""
