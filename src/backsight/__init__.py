"""See what a vision model still knows about an image, stage by stage."""
