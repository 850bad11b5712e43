"""What commands and recipes share: data files, options, measuring, the demo's model, errors.

Words:
    unusable: what a user gave and can mend; an `UnusableError` says it in one line.
    whole: written to a place beside the target, and renamed to it once it is complete.
    marked: text with its edits shown, in colour, in brackets, or as markup.
    toedit-demo: a dataset and a model that are made on the spot, without a network.
"""
