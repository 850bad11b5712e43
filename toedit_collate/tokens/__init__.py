"""What only the tokens of a batch decide, on the host: no model is seen here.

For others: `TokenBatch` (a batch, checked, as its documents), `EditResult` (what became of it),
`Documents`, `Draws`, `Protection` and `rule_mask`.

Words:
    document: tokens that see each other: a row without its padding, or a part of a packed row.
    M, N: numbers of tokens and of documents in a batch, padding left out.
    key: 64 bits of a document's content, by which it is known again in any batch.
    draw: a number in [0, 1) for a token, decided by seed, epoch, generation, key and position.
    pattern: text that the chat template puts around what people say.
    rule: a name for what is never edited, found in the text: numbers, code, ...
"""
