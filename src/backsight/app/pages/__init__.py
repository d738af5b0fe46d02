"""The page in gradio: controls on one side, a view on the other."""
