"""Views: from a state to what is shown. Nothing here knows gradio."""
