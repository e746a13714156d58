"""The emulated PD: its pure brain (`cluster`, `placement`, `timestamps`) and the server around it."""
