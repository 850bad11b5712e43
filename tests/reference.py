"""The method, slow and obvious: one document, one token, one candidate at a time, in float64.

Nothing here calls the package's fast paths; the tests compare the two.
"""

from __future__ import annotations

import math

import numpy as np
import torch

MASK32 = 0xFFFFFFFF
MASK64 = 2**64 - 1


def documents_of(input_ids, attention_mask=None, position_ids=None):
    """The documents of a batch: for each, the list of (row, column) of its tokens."""
    documents = []
    for b in range(len(input_ids)):
        previous, number = None, None
        for t in range(len(input_ids[b])):
            if attention_mask is not None and attention_mask[b, t] == 0:
                continue
            before, number = number, None if attention_mask is None else int(attention_mask[b, t])
            continues = (
                previous is not None
                and number == before
                and (position_ids is None or position_ids[b, t] == previous + 1)
            )
            if not continues:
                documents.append([])
            documents[-1].append((b, t))
            previous = None if position_ids is None else int(position_ids[b, t])
            previous = -1 if previous is None else previous
    return documents


def pieces_of(document, input_ids, labels, context, eos_id):
    """What the prior reads by itself of a document (`EditPolicy.context`): lists of positions."""
    pieces = [[0]]
    for i in range(1, len(document)):
        last, here = document[i - 1], document[i]
        if (context == "text" and input_ids[last] == eos_id) or (
            context == "answer" and (labels[last] == -100) != (labels[here] == -100)
        ):
            pieces.append([])
        pieces[-1].append(i)
    return pieces


def document_logits(model, ids):
    """Logits of a document on its own, (L, V) float64, by the model's own forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits[0].double()


def logprob(model, input_ids, attention_mask=None, position_ids=None):
    """log P(x_i | x_<i), (B, T) float64; NaN at first tokens and padding."""
    result = torch.full(input_ids.shape, float("nan"), dtype=torch.float64)
    for document in documents_of(input_ids, attention_mask, position_ids):
        ids = [int(input_ids[b, t]) for b, t in document]
        logits = document_logits(model, ids)
        for i in range(1, len(ids)):
            result[document[i]] = logits[i - 1].log_softmax(-1)[ids[i]]
    return result


def distribution(logits, observed, policy, forbidden=()):
    """What a selected token is drawn from: a probability for each id, (V,) float64."""
    logits = logits.double().clone() / policy.temperature
    for token_id in forbidden:
        logits[token_id] = -float("inf")
    p = logits.softmax(-1)
    by_probability = sorted(range(len(p)), key=lambda i: (-float(logits[i]), i))
    by_probability = [i for i in by_probability if p[i] > 0 or logits[i] > -float("inf")]
    if policy.sampler == "top_k":
        candidates = by_probability[: policy.top_k]
    elif policy.sampler == "top_p":
        candidates, mass = [], 0.0
        for i in by_probability:
            candidates.append(i)
            mass += float(p[i])
            if mass >= policy.top_p:
                break
    else:
        candidates = by_probability
    if policy.exclude_original:
        others = [i for i in candidates if i != observed]
        candidates = others or [i for i in by_probability if i != observed][:1]
    result = torch.zeros_like(p)
    for i in candidates:
        result[i] = p[i]
    return result / result.sum()


def philox(counter, key):
    """Philox4x32-10 in whole numbers of Python."""
    c, k = list(counter), list(key)
    for _ in range(10):
        product0, product1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [
            (product1 >> 32) ^ c[1] ^ k[0],
            product1 & MASK32,
            (product0 >> 32) ^ c[3] ^ k[1],
            product0 & MASK32,
        ]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c


def uniform(ids, position, *, seed, epoch, generation, number=0):
    """The draw for one token of a document; of several, that of a number."""
    key = 0
    for i, token in enumerate(ids):
        high, low, _, _ = philox((token, i, 0, 0), (0, 0))
        key = (key + (high << 32 | low)) & MASK64
    words = (seed & MASK32, seed >> 32, 0 if epoch is None else epoch + 1, generation)
    seeded = philox(words, (key & MASK32, key >> 32))
    four = philox((position, number // 2, seeded[2], seeded[3]), (seeded[0], seeded[1]))
    first, second = four[2:] if number % 2 else four[:2]
    return (first * 2**21 + (second >> 11)) * 2.0**-53


def draw(probabilities, observed, u):
    """The token at `u` on a scale with the observed token first and the others by id."""
    total = float(probabilities[observed])
    if u < total:
        return observed
    last = observed
    for i in range(len(probabilities)):
        if i != observed and probabilities[i] > 0:
            last = i
            total += float(probabilities[i])
            if u < total:
                return i
    return last


def edit(
    model,
    input_ids,
    policy,
    *,
    attention_mask=None,
    position_ids=None,
    labels=None,
    epoch=0,
    generation=0,
    protected=None,
    forbidden=(),
    eos_id=None,
    bos_id=None,
):
    """Algorithm 1 on a batch: (new ids, selected, changed, dropped), each (B, T).

    The prior reads `bos_id` before each piece of a document that does not begin with it.
    """
    new_ids = input_ids.clone()
    selected = torch.zeros_like(input_ids, dtype=torch.bool)
    dropped = torch.zeros_like(selected)
    for document in documents_of(input_ids, attention_mask, position_ids):
        ids = [int(input_ids[b, t]) for b, t in document]
        logits = {}  # by position, what the next token is drawn from
        for piece in pieces_of(document, input_ids, labels, policy.context, eos_id):
            tokens = [ids[i] for i in piece]
            lead = [] if bos_id is None or tokens[0] == bos_id else [bos_id]
            found = document_logits(model, lead + tokens)[len(lead) :]
            logits |= {i - 1: found[n] for n, i in enumerate(piece[1:])}
        for i in range(1, len(ids)):
            b, t = document[i]
            if i - 1 not in logits:
                continue
            if policy.scope == "loss" and labels is not None and labels[b, t] == -100:
                continue
            if protected is not None and protected[b, t]:
                continue
            p = float(logits[i - 1].softmax(-1)[ids[i]])
            is_low = policy.drop_below is not None and p < policy.drop_below
            if is_low or (policy.drop_above is not None and p >= policy.drop_above):
                dropped[b, t] = True
                continue
            if policy.region == "above":
                selected[b, t] = p >= policy.threshold
            elif policy.region == "below":
                selected[b, t] = p <= policy.threshold
            elif policy.region == "all":
                selected[b, t] = True
            if selected[b, t]:
                u = uniform(
                    ids,
                    i,
                    seed=policy.seed,
                    epoch=epoch if policy.redraw == "epoch" else None,
                    generation=generation,
                )
                probabilities = distribution(logits[i - 1], ids[i], policy, forbidden)
                new_ids[b, t] = draw(probabilities, ids[i], u)
    return new_ids, selected, new_ids != input_ids, dropped


def rows_left(values, dropped, attention_mask=None):
    """Of each row, the values of the tokens that are real and were not removed, as lists."""
    real = torch.ones_like(dropped) if attention_mask is None else attention_mask != 0
    return [row[keep].tolist() for row, keep in zip(values, real & ~dropped, strict=True)]


def labels_after(labels, new_ids, changed, target):
    """Labels once tokens have changed, for each target of a policy."""
    if target == "inputs":
        return labels
    return torch.where(changed & (labels != -100), new_ids, labels)


class SlowJournal:
    """What each generation did to each document, in dicts; replayed a token at a time."""

    def __init__(self):
        self.generations = {}

    def record(self, generation, source, changes):
        """`changes`: position in the document as it was before -> new token, None: removed."""
        self.generations.setdefault(generation, {}).setdefault(tuple(source), changes)

    def revise(self, source, generation):
        """The document after a generation, and where in the source each of its tokens stood."""
        tokens = list(zip(source, range(len(source)), strict=True))
        for number in range(1, generation + 1):
            changes = self.generations.get(number, {}).get(tuple(source), {})
            after = []
            for position, (token, place) in enumerate(tokens):
                new = changes.get(position, token)
                if new is not None:
                    after.append((new, place))
            tokens = after
        return [token for token, _ in tokens], [place for _, place in tokens]

    def count(self, generation):
        """(changed, removed) tokens of all documents."""
        new = [n for changes in self.generations[generation].values() for n in changes.values()]
        return len(new) - new.count(None), new.count(None)


def expected_linear_errors(world, arm, runs):
    """Test errors of the linear process of section 3.2, exact for each X and choice of rows.

    The labels are X w + e; e is followed by its covariance, which an edit of the rows in M takes
    from C to B C B' + sigma^2 M with B = I - M + M P, P the projection on the columns of X.

    Returns:
        Means over `runs` draws of X and of the rows, and their standard errors: (n + 1,) each.
    """
    rng = np.random.default_rng(12345)
    T, d = world.samples, world.dimension
    errors = np.zeros((runs, len(arm.counts) + 1))
    for run in range(runs):
        X = rng.standard_normal((T, d))
        fit = np.linalg.pinv(X)
        covariance = world.noise**2 * np.eye(T)
        errors[run, 0] = np.trace(fit @ covariance @ fit.T)
        left = list(rng.permutation(T))
        for generation, count in enumerate(arm.counts):
            rows = left[:count] if arm.disjoint else rng.permutation(T)[:count]
            left = left[count:] if arm.disjoint else left
            M = np.zeros((T, T))
            M[rows, rows] = 1
            B = np.eye(T) - M + M @ X @ fit
            covariance = B @ covariance @ B.T + world.noise**2 * M
            errors[run, generation + 1] = np.trace(fit @ covariance @ fit.T)
    return errors.mean(0), errors.std(0, ddof=1) / runs**0.5


class SlowAligned:
    """A prior with another tokenizer than the trainee's: one token, one stage, one id at a time.

    `broken_first` is asked for the first token of bytes that are no UTF-8.
    """

    def __init__(self, model, prior, trainee, broken_first=None):
        self.model, self.prior, self.trainee = model, prior, trainee
        self.prior_bytes = [self._bytes(prior, i) for i in range(len(prior))]
        self.trainee_bytes = [self._bytes(trainee, i) for i in range(len(trainee))]
        self.broken_first = broken_first
        self._tables, self._logits = {}, {}

    @staticmethod
    def _is_sentencepiece(tokenizer):
        return tokenizer.convert_tokens_to_ids("<0x41>") not in (None, tokenizer.unk_token_id)

    def _bytes(self, tokenizer, token_id):
        if token_id in tokenizer.all_special_ids:
            return None
        token = tokenizer.convert_ids_to_tokens(token_id)
        if self._is_sentencepiece(tokenizer):
            if token.startswith("<0x") and len(token) == 6:
                return bytes.fromhex(token[3:5])
            return token.replace("▁", " ").encode()
        return bytes(BYTE_OF[character] for character in token)

    def encode(self, tokenizer, text):
        """The ids of text in the middle of a document."""
        if not self._is_sentencepiece(tokenizer):
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = tokenizer("\x01" + text, add_special_tokens=False, split_special_tokens=True)
        ids = ids["input_ids"]
        return ids[ids.index(tokenizer.convert_tokens_to_ids("<0x01>")) + 1 :]

    def first(self, data):
        try:
            ids = self.encode(self.trainee, data.decode())
        except UnicodeDecodeError:
            return self.broken_first(data)
        return ids[0] if ids else -1

    def table(self, covered):
        """The first trainee token of `covered` and each id of the prior after it."""
        if covered not in self._tables:
            self._tables[covered] = [
                -1 if one is None else self.first(covered + one) for one in self.prior_bytes
            ]
            for token_id in range(len(self.trainee) if covered == b"" else 0):
                if self.trainee_bytes[token_id] is None and self._special(token_id) is not None:
                    self._tables[covered][self._special(token_id)] = token_id
        return self._tables[covered]

    def both_sides(self, ids):
        """The prior's tokens; where each begins; where each of the trainee's begins and ends.

        A place is (number of special tokens so far, byte after the last of them).
        """
        prior_ids, prior_begins, spans = [], [], []
        section, position = 0, 0
        while position < len(ids):
            if self.trainee_bytes[ids[position]] is None:
                spans.append(None)
                there = self._special(ids[position])
                if there is not None:
                    prior_ids.append(there)
                    prior_begins.append((section, "special"))
                section += 1
                position += 1
                continue
            data, byte = b"", 0
            while position < len(ids) and self.trainee_bytes[ids[position]] is not None:
                piece = self.trainee_bytes[ids[position]]
                spans.append(((section, byte), (section, byte + len(piece))))
                data, byte, position = data + piece, byte + len(piece), position + 1
            byte = 0
            for token_id in self.encode(self.prior, data.decode()):
                prior_ids.append(token_id)
                prior_begins.append((section, byte))
                byte += len(self.prior_bytes[token_id])
            assert byte == len(data)
        return prior_ids, prior_begins, spans

    def _special(self, token_id):
        if token_id == self.trainee.bos_token_id:
            return self.prior.bos_token_id
        name = self.trainee.convert_ids_to_tokens(token_id)
        if name in self.prior.all_special_tokens:
            return self.prior.convert_tokens_to_ids(name)
        return self.prior.eos_token_id if token_id == self.trainee.eos_token_id else None

    def chains(self, ids):
        """position -> (index of the first prior token, number of them), where there is a score."""
        _, begins, spans = self.both_sides(ids)
        found = {}
        for position, span in enumerate(spans):
            if position == 0 or span is None or span[0] not in begins:
                continue
            inside = [
                number
                for number, place in enumerate(begins)
                if place[0] == span[0][0] and place[1] != "special"
                and span[0][1] <= place[1] < span[1][1]
            ]  # fmt: skip
            if inside[0] > 0:
                found[position] = (inside[0], len(inside))
        return found

    def stages(self, ids, position):
        """For each prior token of a chain: what is covered, its id, and log-probabilities."""
        prior_ids = self.both_sides(ids)[0]
        key = tuple(prior_ids)
        if key not in self._logits:
            bos = self.prior.bos_token_id
            lead = [bos] if self.prior("a")["input_ids"][0] == bos != prior_ids[0] else []
            logits = document_logits(self.model, lead + prior_ids)[len(lead) :]
            self._logits[key] = logits.log_softmax(-1)
        begin, count = self.chains(ids)[position]
        covered = b""
        for number in range(begin, begin + count):
            yield covered, prior_ids[number], self._logits[key][number - 1]
            covered += self.prior_bytes[prior_ids[number]]

    def logprob(self, ids, position):
        """The lower bound of the log-probability of a token."""
        *before, (covered, _, last) = self.stages(ids, position)
        total = sum(float(logprobs[token_id]) for _, token_id, logprobs in before)
        group = [u for u, x in enumerate(self.table(covered)) if x == ids[position]]
        p = sum(float(last[u].exp()) for u in group)
        return total + (math.log(p) if p > 0 else -math.inf)

    def distribution(self, ids, position, policy, forbidden=()):
        """What the token is drawn from: a probability for each id of the trainee."""
        W = len(self.trainee)
        stages = list(self.stages(ids, position))
        result, reached = torch.zeros(W, dtype=torch.float64), 1.0
        staged = policy.replace(exclude_original=False) if len(stages) > 1 else policy
        for number, (covered, token_id, logprobs) in enumerate(stages):
            is_last = number == len(stages) - 1
            masses = torch.zeros(W + 1, dtype=torch.float64)  # the last: go on with the chain
            for u, x in enumerate(self.table(covered)):
                if not is_last and u == token_id:
                    masses[W] += logprobs[u].exp()
                elif x >= 0:
                    masses[x] += logprobs[u].exp()
            observed = ids[position] if is_last else W
            shares = distribution(masses.log(), observed, staged, forbidden)
            result += reached * shares[:W]
            reached *= float(shares[W])
        if policy.exclude_original and len(stages) > 1:
            result[ids[position]] = 0
            if float(result.sum()) == 0:
                everything = policy.replace(exclude_original=False, sampler="full")
                result = self.distribution(ids, position, everything, forbidden)
                result[ids[position]] = 0
                result = (torch.arange(W) == int(result.argmax())).double()
        return result / result.sum()


def _byte_characters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


BYTE_OF = _byte_characters()
