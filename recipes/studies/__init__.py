"""Studies: does editing pay? Questions are written down first, then answered by small runs.

A study is a YAML file. It states the question, what counts as yes, the arms and the budget before
the first run. Words:
    arm: one way of training (a policy, or what people use instead of editing).
    trial: settings of an arm that are tried on the tuning seed; the best on validation is kept.
    world: the data, the prior and the trainee that all arms of a study share.
    run: one training of one arm with one seed; a JSON file, so that a killed study goes on.
"""
