"""The measured figures of the README: `python -m bench`. All is measured from outside, by command line and clients."""
