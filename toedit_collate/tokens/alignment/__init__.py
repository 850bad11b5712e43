"""Two tokenizations of the same bytes: which tokens of a prior stand for a token of a trainee.

`byte_tokenizer` knows the bytes of each token, `document` aligns documents and plans what to
predict, and `groups` finds the prior's tokens for a token of the trainee.

Words:
    first: the first token of the trainee's own encoding of some bytes.
    chain: the tokens of the prior that begin inside one token of the trainee; most chains have one.
    covered: the bytes of a chain before its last token.
    group: the prior's ids that, written after `covered`, make the trainee's token `first`.
"""
