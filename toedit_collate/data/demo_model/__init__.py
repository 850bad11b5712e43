"""The small prior of the demo, and the text that it is trained on.

`make_prior` trains one in a number of steps; `demo_model` keeps one for the tiny recipes; the text
is Python's own help topics, whole topics of which are held out.
"""
