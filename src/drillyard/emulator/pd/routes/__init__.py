"""The paths of PD's HTTP interface, by what they are about."""
