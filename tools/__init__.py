"""What makes the documentation: generated pages, the site, pictures of a terminal. Not part of what is installed."""
