"""What follows from the tokens of a batch alone, computed on the host. No module here uses a model.

For other folders: `TokenBatch` (a checked batch and its documents), `EditResult`, `Documents`,
`Draws`, `Protection` and `rule_mask`.

Words:
    document: tokens that see each other: a row without its padding, or a part of a packed row.
    M, N: the numbers of tokens and of documents in a batch, without padding.
    key: 64 bits of a document's content. Its draws depend on it.
    draw: a number in [0, 1) for a token, from seed, epoch, generation, key and position.
    pattern: text that the chat template writes around the messages.
    rule: a kind of text that is never edited: numbers, code, ...
"""
