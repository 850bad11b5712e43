"""What measuring needs: inputs, shapes of real models, the machine, timing.

Words:
    shape: the size of a published model, filled with random weights.
    calibrated states: hidden states that give random weights the probabilities of real text.
    variant: one way to do the same work; several are timed in turns, in one process.
    pair: two variants timed one after the other; their ratio is what travels between machines.
"""
