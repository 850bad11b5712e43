"""What edits look like: counts, and pages for the terminal and the browser.

A *kind* is what a token is to a reader: a digit, punctuation, the beginning of a word, ...
Nothing here changes data or trains.
"""
