"""The small prior of the demo, and the text that it is trained on."""
