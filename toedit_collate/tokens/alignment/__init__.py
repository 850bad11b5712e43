"""Two tokenizations of the same bytes: how the tokens of a trainee and of its prior correspond.

A document is a string of bytes, and each tokenizer cuts it at places of its own. Here stand the
bytes behind each token (`bytes_of_tokens`, `byte_tokenizer`), the cuts of a document on both sides
(`document`, `aligner`), and which tokens of the prior stand for a token of the trainee (`groups`).
There is no model in it.

Words that are its own:
    cut: the byte at which a token begins.
    first: the first token of the trainee's own encoding of some bytes.
    chain: the tokens of the prior that begin inside one token of the trainee; most chains have one.
    covered: the bytes of a chain before its last token.
    group: the prior's ids that, written behind what is covered, make the trainee's token `first`.
"""
