"""One file for each experiment: what is measured, and how it is drawn."""
