"""Studies: does editing pay? Questions that are written down first, answered by small runs.

A study is a YAML file: its question, what would count as yes, its arms and its budget stand in it
before it is run. Words:
    arm: one way of training (a policy, or what people use instead of editing).
    trial: settings of an arm that are tried on the tuning seed; the best on validation is kept.
    world: the data, the prior and the trainee that all arms of a study share.
    run: one training of one arm with one seed; a JSON file, so that a killed study goes on.
"""
