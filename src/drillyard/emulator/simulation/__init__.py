"""Pure: what the emulator is made of, run on virtual time from one seed."""
